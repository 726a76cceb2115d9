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

from sparsecap_jax.pruning.base import Pruner, PruneState
from sparsecap_jax.pruning.paths import Path, by_path, nest
from sparsecap_jax.pruning.ranking import prune_smallest
from sparsecap_jax.pruning.schedules import Polynomial, gradual_schedule, removals
from sparsecap_jax.pruning.settings import check_range
from sparsecap_jax.types import PyTree

Criterion = Literal["blind", "uniform", "dist"]


def _fixed_order_sum(values: Float[Array, "..."]) -> Float[Array, ""]:
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
        centred = weight - _fixed_order_sum(weight) / weight.size
        # The barrier keeps the square from fusing into the sum with other rounding.
        square = lax.optimization_barrier(jnp.square(centred))
        deviation = jnp.sqrt(_fixed_order_sum(square) / weight.size)
        standard.append(jnp.abs(centred / deviation))
    return standard


def grouping(criterion: Criterion, sizes: Sequence[int]) -> tuple[tuple[int, ...], list[int]]:
    """Which tensors are ranked together.

    Args:
        criterion: `uniform` ranks each tensor by itself, the others all together.
        sizes: number of entries of each tensor.

    Returns:
        Each tensor's group, and the number of entries of each group.
    """
    if criterion == "uniform":
        return tuple(range(len(sizes))), list(sizes)
    return (0,) * len(sizes), [sum(sizes)]


def pick(params: PyTree, paths: Iterable[Path]) -> list[Array]:
    """The leaves of `params` at `paths`."""
    leaves = by_path(params)
    return [leaves[path] for path in paths]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneShotMagnitude(Pruner):
    """Remove int(sparsity x size) weights at once, before training; masks then stay fixed.

    Attributes:
        criterion: `blind`, `uniform` or `dist`.
    """

    criterion: Criterion = "blind"

    expects_trained: ClassVar[bool] = True

    def prepare(
        self,
        state: PruneState,
        params: PyTree,
        grad_fn: Callable[[PyTree, Any], PyTree] | None = None,
        batches: Iterable[Any] = (),
    ) -> PruneState:
        """Compute the masks from the weights' magnitudes; frozen masks stay as they are."""
        active, frozen = self.split(state.masks)
        if not active:
            return state
        weights = pick(params, active)
        groups, sizes = grouping(self.criterion, [weight.size for weight in weights])
        remove = jnp.array(removals(self.sparsity, sizes), jnp.uint32)
        masks = prune_smallest(scores(weights, self.criterion), remove, groups)
        return state.replace(masks=nest({**frozen, **dict(zip(active, masks, strict=True))}))


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradualMagnitude(Pruner):
    """Recompute magnitude masks during training, to a sparsity that rises by a cubic schedule.

    Each event ranks the raw weights anew, so that weights may come back; between events masks
    stay fixed. See `schedules.gradual_schedule` for the defaults.

    Attributes:
        criterion: `blind`, `uniform` or `dist`.
        initial_sparsity: sparsity of the first event.
        start_step: step of the first event; None: the end of the first epoch.
        frequency: steps between events; None: 1000, or fewer in a short run.
        events: number of rises; None: as many as fit into half of training.
    """

    criterion: Criterion = "blind"
    initial_sparsity: float = 0.0
    start_step: int | None = None
    frequency: int | None = None
    events: int | None = None

    def __post_init__(self):
        super().__post_init__()
        check_range("pruner.initial_sparsity", self.initial_sparsity, 0.0, self.sparsity)

    @property
    def schedule(self) -> Polynomial:
        """When masks change and to which sparsity."""
        return gradual_schedule(
            self.sparsity,
            self.total_steps,
            self.steps_per_epoch,
            initial=self.initial_sparsity,
            start=self.start_step,
            frequency=self.frequency,
            events=self.events,
        )

    def init(self, rng: Array, params: PyTree) -> PruneState:
        """As in `Pruner`; a schedule that does not fit into training fails here."""
        _ = self.schedule
        return super().init(rng, params)

    def update(
        self,
        state: PruneState,
        params: PyTree,
        grads: PyTree | None,
        step: Any,
        rng: Array | None = None,
    ) -> PruneState:
        """Recompute the active masks where `step` is an event of the schedule."""
        active, frozen = self.split(state.masks)
        if not active:
            return state
        weights = pick(params, active)
        groups, sizes = grouping(self.criterion, [weight.size for weight in weights])
        due, event = self.schedule.locate(jnp.asarray(step, jnp.int32))
        table = jnp.asarray(self.schedule.table(sizes))
        masks = lax.cond(
            due,
            lambda: prune_smallest(scores(weights, self.criterion), table[event], groups),
            lambda: list(active.values()),
        )
        return state.replace(masks=nest({**frozen, **dict(zip(active, masks, strict=True))}))
