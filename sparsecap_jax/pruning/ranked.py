"""What all methods share that rank scores: targets, structures, and when masks are recomputed."""

import abc
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning.base import Pruner, PruneState
from sparsecap_jax.pruning.masks import finalize
from sparsecap_jax.pruning.paths import Path, by_path, nest
from sparsecap_jax.pruning.schedules import Polynomial, gradual_schedule
from sparsecap_jax.pruning.structures import NofM, Unstructured, parse_structure
from sparsecap_jax.pruning.targets import Distribution, Shape, Targets, make_targets
from sparsecap_jax.settings import Range, check_range
from sparsecap_jax.types import PyTree


def pick(tree: PyTree, paths: Iterable[Path]) -> list[Array]:
    """The leaves of `tree` at `paths`."""
    leaves = by_path(tree)
    return [leaves[path] for path in paths]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranked(Pruner, abc.ABC):
    """Masks that remove the lowest scores.

    Attributes:
        sparsity_type: `unstructured`, `N:M` (then `sparsity` is 1 - N / M) or `HxW` blocks.
        sparsity_axis: the axis along which N of M neighbours stay.
    """

    sparsity_type: str = "unstructured"
    sparsity_axis: int = -1

    def __post_init__(self):
        super().__post_init__()
        structure = self.structure
        if not isinstance(structure, NofM):
            return
        removed = 1.0 - structure.n / structure.m
        if abs(self.sparsity - removed) > 1e-6:
            raise ConfigError(
                f"pruner.sparsity is {self.sparsity}, but pruner.sparsity_type "
                f"{self.sparsity_type!r} removes {removed:.6g}"
            )
        if self.spread == "erk":
            raise ConfigError("pruner.distribution is 'erk', which does not go with N:M sparsity")

    @property
    def structure(self) -> Unstructured:
        """Which weights stay or go together."""
        return parse_structure(self.sparsity_type, self.sparsity_axis)

    @property
    def spread(self) -> Distribution:
        """How the target is spread over the tensors."""
        return "global"

    def targets(self, shapes: dict[Path, Shape]) -> Targets:
        """As in `Pruner`, by the method's distribution and structure."""
        sparsity, spread = self.sparsity, self.spread
        if isinstance(self.structure, NofM):
            # 1 - N / M is seldom exact in binary; its product with M is meant to be M - N.
            sparsity, spread = sparsity + 1e-9, "uniform"
        return make_targets(shapes, sparsity, spread, self.overrides, self.structure.entries)

    @abc.abstractmethod
    def scores(
        self, state: PruneState, weights: list[Array], grads: list[Array] | None, event: Any
    ) -> list[Array]:
        """How much each weight matters; the smallest scores go first.

        Args:
            state: the state.
            weights: the active weights.
            grads: their gradients, for methods that rank these.
            event: int32 scalar, number of the event; 0 for a ranking without a schedule.

        Returns:
            float32 scores shaped as the weights.
        """

    def rank(
        self,
        state: PruneState,
        params: PyTree,
        grads: PyTree | None,
        remove: Sequence[int] | Array | None = None,
        event: Any = 0,
    ) -> list[Array]:
        """Active masks by the scores.

        Args:
            state: the state.
            params: the parameters.
            grads: their gradients, where the method ranks these.
            remove: how much of each group goes; None for the targets.
            event: see `scores`.

        Returns:
            Masks in the order of the active paths.
        """
        active, _ = self.split(state.masks)
        targets = self.targets({path: mask.shape for path, mask in active.items()})
        remove = targets.removals() if remove is None else remove
        slopes = None if grads is None else pick(grads, active)
        scores = self.scores(state, pick(params, active), slopes, event)
        return self.structure.prune(scores, jnp.asarray(remove, jnp.uint32), targets.groups)

    def put(self, state: PruneState, masks: list[Array]) -> PruneState:
        """The state with these active masks."""
        active, frozen = self.split(state.masks)
        return state.replace(masks=nest({**frozen, **dict(zip(active, masks, strict=True))}))

    def untimed(self) -> "Ranked":
        """The same method without what its schedule asks of the length of training."""
        timed = {"start_step", "frequency", "events"}
        fields = timed & {field.name for field in dataclasses.fields(self)}
        return dataclasses.replace(self, total_steps=10_000, **dict.fromkeys(fields))

    def instant_sparsify(
        self, params: PyTree, grads: PyTree | None = None, rng: Array | None = None
    ) -> tuple[PyTree, PyTree]:
        """Prune to the target at once, without any training.

        Args:
            params: any pytree of arrays.
            grads: gradients of the loss by them, for methods that rank these.
            rng: a PRNG key for random methods; by default the key of seed 0.

        Returns:
            The pruned parameters (zeros in place), and their masks.
        """
        state = self.untimed().init(jax.random.key(0) if rng is None else rng, params)
        masks = self.put(state, self.rank(state, params, grads)).masks
        return finalize(params, masks), masks


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtEvents(Ranked):
    """Masks recomputed at some steps of training; between them they stay fixed.

    See `schedules.gradual_schedule` for the defaults.

    Attributes:
        start_step: step of the first event; None: the end of the first epoch.
        frequency: steps between events; None: 1000, or fewer in a short run.
        events: number of events after the first; None: as many as fit into half of training.
    """

    start_step: int | None = None
    frequency: int | None = None
    events: int | None = None

    @property
    def schedule(self) -> Polynomial:
        """When masks change, and to which sparsity."""
        return self._gradual(0.0)

    def _gradual(self, initial: float) -> Polynomial:
        return gradual_schedule(
            self.sparsity,
            self.total_steps,
            self.steps_per_epoch,
            initial=initial,
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
        active, _ = self.split(state.masks)
        if not active:
            return state
        targets = self.targets({path: mask.shape for path, mask in active.items()})
        due, event = self.schedule.locate(jnp.asarray(step, jnp.int32))
        masks = lax.cond(
            due,
            lambda: self.recompute(state, params, grads, targets, event),
            lambda: list(active.values()),
        )
        return self.put(state, masks)

    @abc.abstractmethod
    def recompute(
        self, state: PruneState, params: PyTree, grads: PyTree | None, targets: Targets, event: Any
    ) -> list[Array]:
        """The active masks after an event.

        Args:
            state: the state before it.
            params: the parameters.
            grads: their gradients, where there are any.
            targets: of the active masks.
            event: int32 scalar, number of the event.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheduled(AtEvents):
    """Masks ranked anew at each event, to a sparsity that rises by a cubic schedule.

    Ranks go by the raw weights, so that weights may come back.

    Attributes:
        initial_sparsity: sparsity of the first event.
    """

    initial_sparsity: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        check_range("pruner.initial_sparsity", self.initial_sparsity, Range(0.0, self.sparsity))

    @property
    def schedule(self) -> Polynomial:
        """When masks change and to which sparsity."""
        return self._gradual(self.initial_sparsity)

    def recompute(
        self, state: PruneState, params: PyTree, grads: PyTree | None, targets: Targets, event: Any
    ) -> list[Array]:
        """Rank for the sparsity of the event."""
        table = jnp.asarray(self.schedule.table(targets.sizes, targets.sparsities))
        return self.rank(state, params, grads, table[event], event)
