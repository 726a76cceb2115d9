"""Scores of weights, and masks that remove exactly the k smallest.

Nothing is sorted: the k-th smallest score is found digit by digit of its bits, in 11 passes that
count, each an integer reduction. That compiles to a small loop, and gives the same masks however
the scores are sharded.

References:
    See, Luong and Manning, "Compression of neural machine translation models via pruning" (2016),
    arXiv 1606.09274 (magnitudes: class-blind, class-uniform, class-distribution).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, UInt32

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


def _row_counts(key: UInt32[Array, "..."], limits: Sequence[Array]) -> list[Array]:
    """Count the entries of each row of the last axis that are at most each limit.

    One reduction of several operands reads the keys once and, on a CPU, takes a tenth of the time
    of a single one, which XLA does not vectorize.
    """
    zero = jnp.zeros((), jnp.uint32)
    hits = tuple((key <= limit).astype(jnp.uint32) for limit in limits)
    sums = lax.reduce(
        hits, (zero,) * len(hits), lambda a, b: tuple(map(jnp.add, a, b)), (key.ndim - 1,)
    )
    return list(sums)


def _thresholds(
    keys: Keys, remove: UInt32[Array, " G"], groups: tuple[int, ...]
) -> tuple[UInt32[Array, " G"], UInt32[Array, " G"]]:
    """Return the `remove`-th smallest key of each group, and the number of keys below it.

    Both are 0 where none is removed. Three bits are found in a pass, the last two in the eleventh.
    """
    digits = jnp.arange(1, 8, dtype=jnp.uint32)
    largest = jnp.uint32(0xFFFFFFFF)

    def narrow(i, state):
        prefix, below = state
        shift = jnp.maximum(29 - 3 * i, 0).astype(jnp.uint32)
        # The greatest keys whose next digit is at most 0 to 6, [G, 7]; saturated at the top.
        limits = prefix[:, None] + (digits << shift) - jnp.uint32(1)
        limits = jnp.where(limits < prefix[:, None], largest, limits)
        counts = jnp.zeros(limits.shape, jnp.uint32)
        for key, group in zip(keys, groups, strict=True):
            rows = _row_counts(key, list(limits[group]))
            counts = counts.at[group].add(jnp.stack([jnp.sum(r, dtype=jnp.uint32) for r in rows]))
        fewer = counts < remove[:, None]
        digit = jnp.sum(fewer, axis=1, dtype=jnp.uint32)
        # Counts rise with their limits: the last one that is too small.
        below = jnp.maximum(below, jnp.max(jnp.where(fewer, counts, jnp.uint32(0)), axis=1))
        return prefix + (digit << shift), below

    return lax.fori_loop(0, 11, narrow, (jnp.zeros_like(remove), jnp.zeros_like(remove)))


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
    limits, below = _thresholds(keys, remove, groups)
    left, masks = remove - below, []  # of the keys at the limit
    for key, group, score in zip(keys, groups, scores, strict=True):
        limit = limits[group]
        upto, less, _ = _row_counts(key, [limit, limit - jnp.uint32(1), limit])
        ties = jnp.where(limit == 0, upto, upto - less).reshape(-1)
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
