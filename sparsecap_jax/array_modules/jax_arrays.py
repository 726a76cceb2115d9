"""Names that `numpy_arrays` has, for JAX; everything else is `jax.numpy`'s."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

__getattr__ = jnp.__getattribute__

sigmoid = jax.nn.sigmoid
softmax = jax.nn.softmax
log_softmax = jax.nn.log_softmax
tree_map = jax.tree.map
tree_leaves = jax.tree.leaves
while_loop = jax.lax.while_loop
fori_loop = jax.lax.fori_loop
top_k = jax.lax.top_k


def update_if(changes: Any, update: Callable, state: Any) -> Any:
    """Return `update(state)`; compiled, it costs less than to ask whether it changes anything."""
    return update(state)


def set_at(array: jax.Array, index: Any, values: Any) -> jax.Array:
    """Return `array` with `values` at `index`."""
    return array.at[index].set(values)


def add_at(array: jax.Array, index: Any, values: Any) -> jax.Array:
    """Return `array` with `values` added at `index`, as often as a place occurs there."""
    return array.at[index].add(values)


def min_at(array: jax.Array, index: Any, values: Any) -> jax.Array:
    """Return `array` with the minimum of it and `values` at `index`."""
    return array.at[index].min(values)


def least_later(values: jax.Array) -> jax.Array:
    """Return, for each place of a vector, the least value from there on."""
    return jax.lax.cummin(values, reverse=True)


def to_bits(values: jax.Array) -> jax.Array:
    """Return the bits of float32 as int32."""
    return jax.lax.bitcast_convert_type(values, jnp.int32)


def from_bits(bits: jax.Array) -> jax.Array:
    """Return the float32 of bits."""
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def fold_in(keys: jax.Array, data: Any) -> jax.Array:
    """Return the random keys `[B]` that follow from `keys` and a number."""
    return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys)


def uniform(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return float32 `[B, *shape]` in [0, 1)."""
    return jax.vmap(lambda key: jax.random.uniform(key, shape, jnp.float32))(keys)


def gumbel_argmax(keys: jax.Array, logits: Any) -> jax.Array:
    """Draw from the distributions `[B, K, V]` by Gumbel noise."""
    draw: Callable = jax.vmap(lambda key, row: jax.random.categorical(key, row, axis=-1))
    return draw(keys, logits)
