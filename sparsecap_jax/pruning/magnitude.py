"""Magnitude pruning, one-shot and gradual: the smallest weights go.

    blind    |w| ranked over all tensors together
    uniform  |w| ranked within each tensor
    dist     |(w - mean) / std|, standardised per tensor, ranked over all tensors together

References:
    See, Luong and Manning, "Compression of neural machine translation models via pruning" (2016),
    arXiv 1606.09274 (class-blind, class-uniform, class-distribution).
    Zhu and Gupta, "To prune, or not to prune" (2017), arXiv 1710.01878 (gradual).
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from sparsecap_jax.pruning.base import PruneState
from sparsecap_jax.pruning.ranked import Ranked, Scheduled
from sparsecap_jax.pruning.targets import Distribution
from sparsecap_jax.types import PyTree

Criterion = Literal["blind", "uniform", "dist"]


def fixed_order_sum(values: Float[Array, "..."]) -> Float[Array, ""]:
    """Sum by halving: each addition is spelt out, so sharding cannot change its order."""
    flat = values.reshape(-1)
    flat = jnp.pad(flat, (0, (1 << (flat.size - 1).bit_length()) - flat.size))
    while flat.size > 1:
        half = flat.size // 2
        flat = flat[:half] + flat[half:]
    return flat[0]


def scores(
    weights: Sequence[Float[Array, "..."]], criterion: Criterion
) -> list[Float[Array, "..."]]:
    """How much each weight matters, by magnitude.

    Args:
        weights: float32 tensors of any shape.
        criterion: `blind`, `uniform` or `dist`.

    Returns:
        float32 scores shaped as the weights; the smallest go first.
    """
    if criterion != "dist":
        return [jnp.abs(weight) for weight in weights]
    standard = []
    for weight in weights:
        centred = weight - fixed_order_sum(weight) / weight.size
        # The barrier keeps the square from fusing into the sum with other rounding.
        square = lax.optimization_barrier(jnp.square(centred))
        deviation = jnp.sqrt(fixed_order_sum(square) / weight.size)
        standard.append(jnp.abs(centred / deviation))
    return standard


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Magnitude(Ranked):
    """Scores and distribution of the reference's three criteria.

    Attributes:
        criterion: `blind`, `uniform` or `dist`.
    """

    criterion: Criterion = "blind"

    @property
    def spread(self) -> Distribution:
        """Each tensor by itself for `uniform`, else all together."""
        return "uniform" if self.criterion == "uniform" else "global"

    def scores(
        self, state: PruneState, weights: list[Array], grads: list[Array] | None, event: Any
    ) -> list[Array]:
        """See `scores` of this module."""
        return scores(weights, self.criterion)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneShotMagnitude(_Magnitude):
    """Remove int(sparsity x size) weights at once, before training; masks then stay fixed."""

    expects_trained: ClassVar[bool] = True

    def prepare(
        self,
        state: PruneState,
        params: PyTree,
        grad_fn: Callable[[PyTree, Any], PyTree] | None = None,
        batches: Iterable[Any] = (),
    ) -> PruneState:
        """Compute the masks from the weights' magnitudes; frozen masks stay as they are."""
        active, _ = self.split(state.masks)
        return self.put(state, self.rank(state, params, None)) if active else state


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradualMagnitude(_Magnitude, Scheduled):
    """Recompute magnitude masks during training, as `Scheduled` says."""
