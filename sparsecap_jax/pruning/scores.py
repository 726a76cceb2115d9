"""Scores of weights: the lowest are pruned. All are float32 and shaped as the weights.

References:
    See, Luong and Manning, "Compression of neural machine translation models via pruning" (2016),
    arXiv 1606.09274 (magnitudes: class-blind, class-uniform, class-distribution).
    Lee, Ajanthan and Torr, "SNIP: single-shot network pruning based on connection sensitivity"
    (2019), arXiv 1810.02340, equations 5 and 6.
    Molchanov et al., "Importance estimation for neural network pruning" (2019), arXiv 1906.10771
    (saliency: |gradient x weight|).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
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
