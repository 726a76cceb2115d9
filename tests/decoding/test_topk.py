"""Top-k and drawing over long rows, against stock ops and exact frequencies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsecap_jax.decoding import topk


@pytest.mark.parametrize(("length", "k"), [(7, 3), (600, 1), (1031, 5), (4096, 40)])
@pytest.mark.parametrize("kind", ["normal", "ties", "few"])
def test_top_k_is_the_stock_one(length, k, kind):
    rng = np.random.default_rng(length + k)
    values = rng.normal(size=(6, length)).astype(np.float32)
    if kind == "ties":
        values = rng.integers(0, 4, size=(6, length)).astype(np.float32)
    if kind == "few":
        values[:, 2:] = -np.inf
    expected_values, expected_at = jax.lax.top_k(values, k)
    found_values, found_at = topk.top_k(jnp.asarray(values), k)
    np.testing.assert_array_equal(found_values, expected_values)
    np.testing.assert_array_equal(found_at, expected_at)


def test_argmax_takes_the_first_of_the_largest():
    values = np.zeros((2, 3, 700), np.float32)
    values[0, 1, [400, 650]] = 2
    values[1, 2, 699] = 1
    np.testing.assert_array_equal(topk.argmax(jnp.asarray(values)), values.argmax(-1))


@pytest.mark.parametrize("length", [5, 300, 1031])
def test_draw_follows_the_weights(length):
    rng = np.random.default_rng(length)
    weights = rng.exponential(size=length) * (rng.random(length) < 0.5)
    weights[0] = 0
    probs = weights / weights.sum()
    count = 10_000
    log_weights = jnp.log(jnp.broadcast_to(jnp.asarray(weights, jnp.float32), (count, length)))
    uniform = jax.random.uniform(jax.random.key(1), (count, 2), jnp.float32)
    seen = np.bincount(np.asarray(jax.jit(topk.draw)(log_weights, uniform)), minlength=length)
    assert not seen[probs == 0].any()
    expected = count * probs[probs > 0]
    chi_square = np.sum((seen[probs > 0] - expected) ** 2 / expected)
    freedom = len(expected) - 1
    assert abs(chi_square - freedom) < 4 * np.sqrt(2 * freedom)


def test_draw_at_the_edges_of_the_interval_stays_on_possible_tokens():
    weights = np.zeros((2, 300), np.float32)
    weights[:, [3, 150]] = 0.3, 0.7
    largest = np.nextafter(np.float32(1), np.float32(0))
    uniform = jnp.asarray([[0, 0], [largest, largest]], jnp.float32)
    found = topk.draw(jnp.log(jnp.asarray(weights)), uniform)
    np.testing.assert_array_equal(found, [3, 150])
