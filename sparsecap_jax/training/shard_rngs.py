"""Random bits of one shard of a batch, equal to those that one device draws for the whole batch.

JAX's partitionable threefry numbers the bits of an array in row-major order, whatever its shape.
Arrays of a shard are rows of the whole batch's, so that it suffices to start counting further on.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import random as extend
from jaxtyping import Array, Int, Key

_KEY = 2  # numbers of a threefry key; behind it are the shard, the words before it, its slots


def _derive(key: Array, made: Array) -> Array:
    """Give keys `made` by threefry the place of `key`."""
    place = jnp.broadcast_to(key[_KEY:], (*made.shape[:-1], key.shape[0] - _KEY))
    return jnp.concatenate([made, place], axis=-1)


def _split(key: Array, shape: tuple[int, ...]) -> Array:
    return _derive(key, extend.threefry_prng_impl.split(key[:_KEY], shape))


def _fold_in(key: Array, data: Any) -> Array:
    return _derive(key, extend.threefry_prng_impl.fold_in(key[:_KEY], data))


def _random_bits(key: Array, bit_width: int, shape: tuple[int, ...]) -> Array:
    first, second, shard, before, slots = key
    rows, *others = shape or (1,)
    start = jnp.where(slots == rows, before, shard * jnp.uint32(rows))
    width, size = math.prod(others), math.prod(shape)
    places = start * jnp.uint32(width) + jax.lax.iota(jnp.uint32, size)
    keys = (jnp.broadcast_to(part, (size,)) for part in (first, second))
    high, low = extend.threefry2x32_p.bind(*keys, jnp.zeros_like(places), places)
    return (high ^ low).reshape(shape).astype(f"uint{bit_width}")


def _seed(seed: Array) -> Array:
    raise TypeError("keys of shards are made by shard_keys")


_SHARD = extend.define_prng_impl(
    key_shape=(_KEY + 3,),
    seed=_seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="threefry2x32_of_shard",
    tag="threefry_shard",
)


def shard_keys(
    rng: Key[Array, ""], shards: int, words: Int[Array, " S"] | None = None, slots: int = 0
) -> Key[Array, " S"]:
    """Return a key for each of S equal shards of a batch, to be used under `jax.vmap`.

    Arrays of at most 32 bits that are drawn with it, with images (or equally many rows of each
    image) as their first axis, are the shard's rows of what `rng` draws for the whole batch; those
    whose first axis has `slots` words follow the words of the shards before. One array may have
    2**32 elements. Without the partitionable threefry, the keys are independent instead.

    Args:
        rng: the key of the whole batch.
        shards: S.
        words: number of words of each shard; None where no array has words as its first axis.
        slots: size of that axis.
    """
    threefry = jax.random.key_impl(rng) == "threefry2x32"
    if not (threefry and jax.config.jax_threefry_partitionable):
        return jax.random.split(rng, shards)
    counts = jnp.zeros(shards, jnp.int32) if words is None else words
    before = jnp.cumsum(counts) - counts
    numbers = jnp.arange(shards, dtype=jnp.uint32)
    places = [numbers, before.astype(jnp.uint32), jnp.full_like(numbers, slots)]
    key = jnp.broadcast_to(jax.random.key_data(rng), (shards, _KEY))
    data = jnp.concatenate([key, jnp.stack(places, axis=-1)], axis=-1)
    return jax.random.wrap_key_data(data, impl=_SHARD)
