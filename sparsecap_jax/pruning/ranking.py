"""Scores of weights, and masks that remove exactly the k smallest.

Nothing is sorted: the k-th smallest score is found by bisection on its bits, in 32 counting passes,
each an integer reduction. That is about 10 times faster than sorting
50 million scores on a CPU, compiles to small loops, and gives the same masks however the scores are
sharded.

References:
    See, Luong and Manning, "Compression of neural machine translation models via pruning" (2016),
    arXiv 1606.09274 (magnitudes: class-blind, class-uniform, class-distribution).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, UInt32

Tensors = Sequence[Float[Array, "..."]]


def fixed_order_sum(values: Float[Array, "..."]) -> Float[Array, ""]:
    """Sum by halving: each addition is spelt out, so sharding cannot change its order."""
    flat = values.reshape(-1)
    flat = jnp.pad(flat, (0, (1 << (flat.size - 1).bit_length()) - flat.size))
    while flat.size > 1:
        half = flat.size // 2
        flat = flat[:half] + flat[half:]
    return flat[0]


def _sum_of_squares(values: Array) -> Array:
    # The barrier keeps the square from fusing into the sum, which would round differently.
    return fixed_order_sum(lax.optimization_barrier(jnp.square(values)))


def magnitudes(weights: Tensors) -> list[Array]:
    """Return |weight|."""
    return [jnp.abs(weight) for weight in weights]


def standardized_magnitudes(weights: Tensors) -> list[Array]:
    """Return |(weight - mean) / std|, mean and standard deviation of each tensor by itself."""
    scores = []
    for weight in weights:
        centred = weight - fixed_order_sum(weight) / weight.size
        scores.append(jnp.abs(centred / jnp.sqrt(_sum_of_squares(centred) / weight.size)))
    return scores


def normalized(scores: Tensors) -> list[Array]:
    """Divide scores by the norm of their tensor (and 1e-8), for rankings over all tensors."""
    norms = [jnp.sqrt(_sum_of_squares(score)) for score in scores]
    return [s / (norm + jnp.float32(1e-8)) for s, norm in zip(scores, norms, strict=True)]


def random_scores(seed: UInt32[Array, "2"], event: Any, tensors: Tensors) -> list[Array]:
    """Draw uniform scores in (0, 1), shaped as `tensors`, new ones for each event (int32 scalar).

    The seed is plain numbers, which every checkpoint can hold; draws do not depend on devices.
    """
    key = jax.random.wrap_key_data(seed, impl="threefry2x32")
    key = jax.random.fold_in(key, jnp.asarray(event, jnp.int32))
    tiny = jnp.finfo(jnp.float32).tiny
    return [
        jax.random.uniform(jax.random.fold_in(key, number), tensor.shape, jnp.float32, tiny)
        for number, tensor in enumerate(tensors)
    ]


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
    scores: Tensors, remove: UInt32[Array, " G"], groups: tuple[int, ...]
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
    starts, sizes = [], np.zeros(max(groups) + 1, np.uint32)
    for key, group in zip(keys, groups, strict=True):
        starts.append(int(sizes[group]))
        sizes[group] += key.size
    totals = jnp.asarray(sizes)

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
