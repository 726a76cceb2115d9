"""Packing of words: places by hand, and gradients against those of plain indexing."""

import jax
import jax.numpy as jnp
import numpy as np

from sparsecap_jax.models.packing import Rows, pack_rows

MASK = np.array([[[1, 1, 0], [0, 0, 0]], [[1, 0, 1], [1, 0, 0]]], bool)


def test_words_are_packed_in_order():
    rows = pack_rows(jnp.asarray(MASK), 7)
    np.testing.assert_array_equal(rows.places, [0, 1, 6, 8, 9, 12, 12])
    np.testing.assert_array_equal(rows.slots, [0, 1, 7, 7, 7, 7, 2, 7, 3, 4, 7, 7])
    assert (rows.images, rows.rows, rows.length) == (2, 2, 3)


def test_words_beyond_the_size_are_lost():
    rows = pack_rows(jnp.asarray(MASK), 3)
    np.testing.assert_array_equal(rows.places, [0, 1, 6])
    np.testing.assert_array_equal(rows.slots, [0, 1, 3, 3, 3, 3, 2, 3, 3, 3, 3, 3])


def test_spread_and_gather_undo_each_other():
    rows = pack_rows(jnp.asarray(MASK), 7)
    words = jnp.arange(1.0, 15.0, dtype=jnp.float32).reshape(7, 2)
    spread = rows.spread(words, 4)
    expected = np.zeros((4, 3, 2), np.float32)
    expected[MASK.reshape(4, 3)] = words[:5]
    np.testing.assert_array_equal(spread, expected)
    np.testing.assert_array_equal(rows.gather(spread), words.at[5:].set(0.0))


def test_gradients_equal_those_of_plain_indexing():
    rows = pack_rows(jnp.asarray(MASK), 7)
    words = jnp.arange(1.0, 15.0, dtype=jnp.float32).reshape(7, 2)
    whole = jnp.arange(24.0, dtype=jnp.float32).reshape(4, 3, 2)
    kept = np.flatnonzero(MASK)

    ours = jax.grad(lambda x: jnp.sum(rows.spread(x, 4) ** 2 * whole))(words)
    place = jnp.zeros((12, 2), jnp.float32).at[kept]
    slow = jax.grad(lambda x: jnp.sum(place.set(x[:5]).reshape(4, 3, 2) ** 2 * whole))(words)
    np.testing.assert_allclose(ours, slow, rtol=1e-6)

    ours = jax.grad(lambda x: jnp.sum(rows.gather(x) ** 2 * words))(whole)
    slow = jax.grad(lambda x: jnp.sum(x.reshape(12, 2)[kept] ** 2 * words[:5]))(whole)
    np.testing.assert_allclose(ours, slow, rtol=1e-6)


def test_words_that_follow_one_another_need_no_places():
    rows = Rows(2, 2, 3)
    words = jnp.arange(24.0, dtype=jnp.float32).reshape(12, 2)
    np.testing.assert_array_equal(rows.flat_places(), np.arange(12))
    np.testing.assert_array_equal(rows.spread(words, 2), words.reshape(2, 6, 2))
    np.testing.assert_array_equal(rows.gather(words.reshape(4, 3, 2)), words)
