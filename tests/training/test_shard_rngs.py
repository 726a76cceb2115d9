"""Keys of shards: what they draw together is what one device draws."""

import jax
import jax.numpy as jnp
import numpy as np

from sparsecap_jax.training.shard_rngs import shard_keys

RNG = jax.random.key(7)


def test_rows_of_images_are_those_of_the_whole_batch():
    def draw(key, shape):
        key = jax.random.split(jax.random.fold_in(key, 3), 5)[2]
        return jax.random.uniform(key, shape)

    whole = draw(RNG, (12, 3, 5))
    shards = jax.vmap(lambda key: draw(key, (3, 3, 5)))(shard_keys(RNG, 4))
    np.testing.assert_array_equal(shards.reshape(12, 3, 5), whole)
    once = jax.jit(jax.vmap(lambda key: jax.random.bernoulli(key, 0.3, (2,))))(shard_keys(RNG, 3))
    np.testing.assert_array_equal(once.ravel(), jax.random.bernoulli(RNG, 0.3, (6,)))


def test_words_follow_those_of_the_shards_before():
    words = jnp.array([3, 0, 5], jnp.int32)
    keys = shard_keys(RNG, 3, words, slots=5)
    drawn = jax.vmap(lambda key: jax.random.bits(key, (5, 2)))(keys)
    ours = np.concatenate([row[:n] for row, n in zip(drawn, words, strict=True)])
    np.testing.assert_array_equal(ours, jax.random.bits(RNG, (8, 2)))
    # Arrays of other sizes are rows of images.
    rows = jax.vmap(lambda key: jax.random.bits(key, (4, 2)))(keys)
    np.testing.assert_array_equal(rows.reshape(12, 2), jax.random.bits(RNG, (12, 2)))


def test_without_the_partitionable_threefry_keys_are_independent():
    rbg = jax.random.key(7, impl="rbg")
    np.testing.assert_array_equal(
        jax.random.key_data(shard_keys(rbg, 3)), jax.random.key_data(jax.random.split(rbg, 3))
    )
