"""Scores of weights, and masks that remove exactly the k smallest.

Nothing is sorted: the k-th smallest score is found by bisection on its bits, in counting passes,
each an integer reduction. A sample of the scores says where to begin. That compiles to small loops,
and gives the same masks however the scores are sharded.

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

from sparsecap_jax.pruning.counting import count_true

Tensors = Sequence[Float[Array, "..."]]
Keys = Sequence[UInt32[Array, "..."]]


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
    counts = jnp.stack([count_true(hit) for hit in hits])
    return jnp.zeros(max(groups) + 1, jnp.uint32).at[jnp.array(groups)].add(counts)


def _up_to(keys: Keys, limits: UInt32[Array, " G"], groups: tuple[int, ...]) -> Array:
    """Count the keys of each group that are at most its limit."""
    return _group_counts([k <= limits[g] for k, g in zip(keys, groups, strict=True)], groups)


def _bisect(
    keys: Keys,
    remove: UInt32[Array, " G"],
    groups: tuple[int, ...],
    span: tuple[UInt32[Array, " G"], UInt32[Array, " G"]],
) -> UInt32[Array, " G"]:
    """Return for each group the smallest limit with at least `remove` keys up to it.

    It lies within `span`, both ends included.
    """

    def halve(span):
        low, high = span
        middle = low + (high - low) // jnp.uint32(2)
        enough = _up_to(keys, middle, groups) >= remove
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    return lax.while_loop(lambda span: jnp.any(span[0] < span[1]), halve, span)[0]


def _thresholds(
    keys: Keys, remove: UInt32[Array, " G"], groups: tuple[int, ...]
) -> UInt32[Array, " G"]:
    """Return the `remove`-th smallest key of each group; 0 where none is removed.

    A sample of large tensors gives a narrow span, which two counts of all keys confirm or, where
    the sample misled, replace by what they leave: the result is exact either way.
    """
    low, high = span = (jnp.zeros_like(remove), jnp.full_like(remove, 0xFFFFFFFF))
    sample = [key[_thinning(key.shape)] for key in keys]
    sizes, sampled = np.zeros((2, max(groups) + 1))
    for key, part, group in zip(keys, sample, groups, strict=True):
        sizes[group] += key.size
        sampled[group] += part.size
    if sampled.sum() * 2 < sizes.sum():
        share = jnp.asarray(sampled / sizes, jnp.float32)
        middle = remove.astype(jnp.float32) * share
        # Six standard deviations of the rank that a sample of random entries would give.
        width = 6.0 * jnp.sqrt(middle * (1.0 - middle / jnp.asarray(sampled, jnp.float32))) + 8.0
        for rank in (middle - width, middle + width):
            rank = jnp.clip(rank, 0.0, jnp.asarray(sampled, jnp.float32)).astype(jnp.uint32)
            guess = _bisect(sample, rank, groups, span)
            guess = jnp.clip(guess, low, high)
            enough = _up_to(keys, guess, groups) >= remove
            low = jnp.where(enough, low, jnp.minimum(guess + 1, high))
            high = jnp.where(enough, guess, high)
    return _bisect(keys, remove, groups, (low, high))


def _thinning(shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Return the index of a sample of large tensors: each eighth entry of its last two axes."""
    if np.prod(shape) < 2**16:
        return ()
    return (..., *(slice(None, None, 8) for _ in shape[-2:]))


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
    keys = [jnp.atleast_1d(_ordered_bits(score)) for score in scores]
    limits = _thresholds(keys, remove, groups)
    below = _group_counts([k < limits[g] for k, g in zip(keys, groups, strict=True)], groups)
    left, masks = remove - below, []  # of the keys at the limit
    for key, group, score in zip(keys, groups, scores, strict=True):
        limit = limits[group]
        ties = jnp.sum(key == limit, axis=-1, dtype=jnp.uint32).reshape(-1)
        first = _end_of_ties(key, limit, ties, left[group])
        left = left.at[group].set(left[group] - jnp.minimum(left[group], jnp.sum(ties)))
        index = lax.iota(jnp.uint32, key.size).reshape(key.shape)
        gone = (key < limit) | ((key == limit) & (index < first))
        masks.append(jnp.where(gone, jnp.float32(0.0), jnp.float32(1.0)).reshape(score.shape))
    return masks


def _end_of_ties(
    key: UInt32[Array, "..."],
    limit: UInt32[Array, ""],
    ties: UInt32[Array, " R"],
    count: UInt32[Array, ""],
) -> UInt32[Array, ""]:
    """Return the flat index before which `count` of the ties lie, or the size.

    `ties` is their number in each row of the last axis.
    """
    rows = key.reshape(-1, key.shape[-1])
    passed = jnp.cumsum(ties)
    row = jnp.minimum(jnp.sum(passed < count, dtype=jnp.uint32), jnp.uint32(len(rows) - 1))
    rest = count - (passed[row] - ties[row])
    within = jnp.cumsum(rows[row] == limit, dtype=jnp.uint32)
    column = jnp.sum(within < rest, dtype=jnp.uint32)
    end = row * jnp.uint32(key.shape[-1]) + jnp.minimum(column + 1, jnp.uint32(key.shape[-1]))
    return jnp.where(count == 0, jnp.uint32(0), end)
