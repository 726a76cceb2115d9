"""Masks that remove exactly the k smallest scores, without sorting.

The k-th smallest score is found by bisection on its bits: 32 counting passes, each an integer
reduction. That is about 10 times faster than sorting 50 million scores on a CPU, compiles to small
loops, and gives the same masks however the scores are sharded.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, UInt32


def _ordered_bits(scores: Float[Array, "..."]) -> UInt32[Array, "..."]:
    """Map float32 scores to unsigned integers of the same order (-0.0 equal to 0.0)."""
    top = jnp.uint32(0x80000000)
    bits = lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.uint32)
    bits = jnp.where(bits == top, jnp.uint32(0), bits)
    return jnp.where(bits >= top, ~bits, bits | top)


def _group_counts(hits: Sequence[Array], groups: tuple[int, ...]) -> UInt32[Array, " G"]:
    """Count the True entries of each group."""
    counts = jnp.stack([jnp.sum(hit, dtype=jnp.uint32) for hit in hits])
    return jnp.zeros(max(groups) + 1, jnp.uint32).at[jnp.array(groups)].add(counts)


@partial(jax.jit, static_argnames="groups")
def prune_smallest(
    scores: Sequence[Float[Array, "..."]], remove: UInt32[Array, " G"], groups: tuple[int, ...]
) -> list[Float[Array, "..."]]:
    """Return masks with a 0 at the smallest scores of each group and a 1 elsewhere.

    Of equal scores the earlier in flat order goes first: tensors in the order given, each in
    row-major order. Masks are float32 {0, 1}.

    Args:
        scores: float32 tensors of any shape.
        remove: uint32 `[G]`, number of entries to remove of each group; at most its size.
        groups: for each tensor, the group 0..G-1 within which it is ranked.
    """
    keys = [_ordered_bits(score) for score in scores]
    starts, totals = [], np.zeros(max(groups) + 1, np.uint32)
    for key, group in zip(keys, groups, strict=True):
        starts.append(int(totals[group]))
        totals[group] += key.size
    totals = jnp.asarray(totals)

    def narrow(i, threshold):
        bit = jnp.uint32(1) << (31 - i).astype(jnp.uint32)
        # All lower bits set: the greatest key that shares the prefix found so far.
        limit = threshold | (bit - jnp.uint32(1))
        counts = _group_counts([k <= limit[g] for k, g in zip(keys, groups, strict=True)], groups)
        return jnp.where(counts >= remove, threshold, threshold | bit)

    threshold = lax.fori_loop(0, 32, narrow, jnp.zeros_like(remove))
    below = [key < threshold[g] for key, g in zip(keys, groups, strict=True)]
    ties = [key == threshold[g] for key, g in zip(keys, groups, strict=True)]
    needed = remove - _group_counts(below, groups)
    tied = _group_counts(ties, groups)
    indices = [
        lax.iota(jnp.uint32, key.size).reshape(key.shape) + jnp.uint32(start)
        for key, start in zip(keys, starts, strict=True)
    ]

    def early(limit):
        """Return the ties whose index within the group lies below the limit."""
        triples = zip(ties, indices, groups, strict=True)
        return [tie & (index < limit[g]) for tie, index, g in triples]

    def halve(span):
        low, high = span
        middle = low + (high - low) // jnp.uint32(2)
        enough = _group_counts(early(middle), groups) >= needed
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    # No search where all ties go (low = size) or none does (high = 0).
    low = jnp.where(needed == tied, totals, jnp.zeros_like(totals))
    high = jnp.maximum(low, jnp.where(needed == 0, jnp.zeros_like(totals), totals))
    low, _ = lax.while_loop(lambda span: jnp.any(span[0] < span[1]), halve, (low, high))
    gone = [b | e for b, e in zip(below, early(low), strict=True)]
    return [jnp.where(g, jnp.float32(0.0), jnp.float32(1.0)) for g in gone]
