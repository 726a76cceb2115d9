"""Exact counts of many entries."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, UInt32


def count_true(hits: Bool[Array, "..."]) -> UInt32[Array, ""]:
    """Count the True entries.

    All axes but the last are summed first, which XLA vectorizes on CPU; the sums are integers, so
    that no order and no sharding changes them.
    """
    columns = jnp.sum(hits, axis=tuple(range(hits.ndim - 1)), dtype=jnp.uint32)
    return jnp.sum(columns, dtype=jnp.uint32)
