"""Base of the pruners that rank: scores joined with a distribution, a structure and a schedule."""

import abc
import dataclasses
import itertools
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning.base import GradFn, Pruner, PruneState
from sparsecap_jax.pruning.masks import apply_masks, finalize
from sparsecap_jax.pruning.paths import Path, by_path, replaced
from sparsecap_jax.pruning.structures import (
    IterativeNofM,
    NofM,
    Unstructured,
    parse_structure,
)
from sparsecap_jax.pruning.targets import Distribution, Polynomial, Targets, make_targets
from sparsecap_jax.settings import Range, check_range
from sparsecap_jax.types import PyTree

Arrays = list[Array]
When = Literal["polynomial", "periodic", "one_shot", "before"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranked(Pruner, abc.ABC):
    """Masks that remove the lowest scores.

    A method is a subclass with `scores` and the fields these need. It inherits the settings below;
    one that it does not offer is fixed by a `ClassVar` of that name, or in the registry.

    Ranks are those of the raw weights, so that pruned weights may come back.

    Attributes:
        sparsity_type: `unstructured`, `N:M` (then `sparsity` is 1 - N / M), `iterative_N:M`, `HxW`
            blocks, `HxW_max` or `channels`; see `structures`.
        sparsity_axis: the axis along which N of M neighbours stay, or that of the channels.
        distribution: tensors ranked together (`global`), or each by itself at the same sparsity
            (`uniform`) or by its shape (`erk`); see `targets`.
        when: `polynomial` (the cubic rise), `periodic` (the whole target at every event),
            `one_shot` (at `start_step`), or `before` training.
        initial_sparsity: sparsity of the first event; at most `sparsity`.
        start_step: step of the first event; None: the end of the first epoch, or a quarter of a
            short run.
        frequency: steps between events; None: 1000, or fewer in a short run.
        events: number of events after the first; None: as many as fit into half of training.
        num_batches: batches whose gradients are added up where masks are found `before` training;
            0 for scores that need no gradients.
        starts_sparse: whether `init` finds masks already.
        draws: whether scores are random; `init` then draws their seed into `state.extras`.
    """

    sparsity_type: str = "unstructured"
    sparsity_axis: int = -1
    distribution: Distribution = "uniform"
    when: When = "polynomial"
    initial_sparsity: float = 0.0
    start_step: Annotated[int | None, Range(0)] = None
    frequency: Annotated[int | None, Range(1)] = None
    events: Annotated[int | None, Range(0)] = None

    num_batches: ClassVar[int] = 0
    starts_sparse: ClassVar[bool] = False
    draws: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        check_range("pruner.initial_sparsity", self.initial_sparsity, Range(0.0, self.sparsity))
        if not isinstance(self.structure, NofM):
            return
        if abs(self.sparsity - self.structure.removed) > 1e-6:
            raise ConfigError(
                f"pruner.sparsity is {self.sparsity}, but pruner.sparsity_type "
                f"{self.sparsity_type!r} removes {self.structure.removed:.6g}"
            )
        if self.distribution == "erk":
            raise ConfigError("pruner.distribution is 'erk', which does not go with N:M sparsity")

    @property
    def structure(self) -> Unstructured:
        """Weights that stay or go together."""
        return parse_structure(self.sparsity_type, self.sparsity_axis)

    @property
    def schedule(self) -> Polynomial | None:
        """Steps at which masks are recomputed, and their sparsity; None: never in training.

        By default masks first tighten after the first epoch (a quarter of training where that is
        unknown, or half of it or more) and last at half of training, every 1000 steps; where that
        would make fewer than 20 events, 20 are spread over the same span, or one a step.

        Raises:
            ConfigError: the events do not fit into training.
        """
        if self.when == "before":
            return None
        half, epoch = self.total_steps // 2, self.steps_per_epoch or self.total_steps
        start, frequency, events = self.start_step, self.frequency, self.events
        if start is None:
            start = epoch if epoch < half else self.total_steps // 4
        if self.when == "one_shot":
            return self._one_shot(max(start, 1) if self.start_step is None else start)
        span = half - start
        if frequency is None and events is None and span >= 20 * 1000:
            frequency = 1000
        elif frequency is None:
            frequency = max(1, span // (20 if events is None else max(1, events)))
        if events is None:
            events = span // frequency
        initial = self.initial_sparsity if self.when == "polynomial" else self.sparsity
        schedule = Polynomial(start, frequency, events, initial, self.sparsity)
        if start < 0 or frequency < 1 or events < 1 or schedule.end > self.total_steps:
            raise ConfigError(
                f"pruner: {events} events every {frequency} steps from step {start} do not fit "
                f"into {self.total_steps} steps; set start_step, frequency and events"
            )
        return schedule

    def _one_shot(self, start: int) -> Polynomial:
        """Return the schedule of a single event; `update` first sees step 1."""
        if not 1 <= start <= self.total_steps:
            raise ConfigError(
                f"pruner.start_step is {start}; expected 1 to {self.total_steps}, the steps of "
                "training, for when='one_shot'"
            )
        return Polynomial(start, 1, 0, self.sparsity, self.sparsity)

    @property
    def batches_needed(self) -> int:
        """Number of batches whose gradients `prepare` adds up."""
        return self.num_batches if self.when == "before" else 0

    @property
    def fixed_masks(self) -> bool:
        """Whether masks stay the same in training: all are found before."""
        return self.when == "before"

    @abc.abstractmethod
    def scores(
        self, state: PruneState, weights: Arrays, grads: Arrays | None, event: Any
    ) -> Arrays:
        """Return float32 scores shaped as the weights; the lowest are pruned first.

        Args:
            state: from `init` or a later step.
            weights: the active weights, float32 whatever the parameters are.
            grads: their gradients, float32; never None where `num_batches` is above 0.
            event: int32 scalar, number of the event; 0 for a ranking without a schedule, -1 in
                `init`.
        """

    def targets(self, active: dict[Path, Any]) -> Targets:
        """As in `Pruner`, by the method's distribution and structure.

        Raises:
            ConfigError: an override is malformed, matches nothing, or is above what iterative N:M
                can remove.
        """
        sparsity, distribution = self.sparsity, self.distribution
        if isinstance(self.structure, NofM):
            # 1 - N / M is seldom exact in binary; its product with M is meant to be M - N.
            sparsity, distribution = sparsity + 1e-9, "uniform"
        shapes = {path: leaf.shape for path, leaf in active.items()}
        structure = self.structure
        targets = make_targets(shapes, sparsity, distribution, self.overrides, structure.entries)
        highest = max(targets.sparsities, default=0.0)
        if isinstance(structure, IterativeNofM) and highest > structure.removed + 1e-6:
            raise ConfigError(
                f"pruner.overrides: sparsity {highest:.6g}, but pruner.sparsity_type "
                f"{self.sparsity_type!r} removes {structure.removed:.6g} at most"
            )
        return targets

    def init(self, rng: Array, params: PyTree) -> PruneState:
        """As in `Pruner`; a schedule that does not fit into training fails here."""
        _ = self.schedule
        return self._start(rng, params)

    def _start(self, rng: Array, params: PyTree) -> PruneState:
        state = super().init(rng, params)
        if self.draws:
            state = state.replace(extras={"seed": jax.random.bits(rng, (2,), jnp.uint32)})
        return self.put(state, self.rank(state, params, None, -1)) if self.starts_sparse else state

    def prepare(
        self, state: PruneState, params: PyTree, grad_fn: GradFn = None, batches: Iterable[Any] = ()
    ) -> PruneState:
        """Find the masks where that happens `before` training; frozen masks stay as they are.

        Raises:
            ConfigError: the method ranks gradients, and there is no `grad_fn` or too few batches.
        """
        if self.when != "before" or self.starts_sparse or not self.split(state.masks)[0]:
            return state
        grads = None
        if self.num_batches:
            if grad_fn is None:
                raise ConfigError(f"pruner {self.name!r} needs grad_fn(params, batch) and batches")
            masked, count = apply_masks(params, state.masks), 0
            for batch in itertools.islice(batches, self.num_batches):
                slopes, count = grad_fn(masked, batch), count + 1
                grads = slopes if grads is None else jax.tree.map(jnp.add, grads, slopes)
            if count < self.num_batches:
                raise ConfigError(f"pruner.num_batches is {self.num_batches}; got {count} batches")
        return self.put(state, self.rank(state, params, grads))

    def rank(
        self,
        state: PruneState,
        params: PyTree,
        grads: PyTree | None,
        event: Any = 0,
        schedule: Any = None,
    ) -> Arrays:
        """Return the active masks that the scores give, in the order of their paths.

        They have the sparsity of the schedule's event, or of the target where there is no schedule.

        Raises:
            ConfigError: the method ranks gradients, and there are none.
        """
        if self.num_batches and grads is None:
            raise ConfigError(f"pruner {self.name!r} ranks gradients; give it grads")
        active, _ = self.split(state.masks)
        targets = self.targets(active)
        remove = jnp.asarray(targets.removals(), jnp.uint32)
        if schedule is not None:
            remove = jnp.asarray(schedule.table(targets))[event]
        slopes = None if grads is None else pick(grads, active)
        scores = self.scores(state, pick(params, active), slopes, event)
        return self.structure.prune(scores, remove, targets.groups)

    def put(self, state: PruneState, masks: Arrays) -> PruneState:
        """Return the state with these active masks."""
        active, frozen = self.split(state.masks)
        flat = {**frozen, **dict(zip(active, masks, strict=True))}
        return state.replace(masks=replaced(state.masks, flat))

    def update(
        self, state: PruneState, params: PyTree, grads: PyTree | None, step: Any, rng: Any = None
    ) -> PruneState:
        """Recompute the active masks where `step` is an event of the schedule."""
        active, _ = self.split(state.masks)
        if self.schedule is None or not active:
            return state
        due, event = self.schedule.locate(jnp.asarray(step, jnp.int32))
        masks = lax.cond(
            due, lambda: self.recompute(state, params, grads, event), lambda: list(active.values())
        )
        return self.put(state, masks)

    def changes(self, step: Any) -> Any:
        """As in `Pruner`; True of a subclass whose `update` has times of its own."""
        if type(self).update is not Ranked.update:
            return True
        return self.schedule is not None and self.schedule.locate(jnp.asarray(step, jnp.int32))[0]

    def recompute(
        self, state: PruneState, params: PyTree, grads: PyTree | None, event: Any
    ) -> Arrays:
        """Return the active masks after an event: ranked anew, for its sparsity."""
        return self.rank(state, params, grads, event, self.schedule)

    def instant_sparsify(
        self, params: PyTree, grads: PyTree | None = None, rng: Array | None = None
    ) -> tuple[PyTree, PyTree]:
        """Return the parameters pruned to the target (zeros in place), and their masks.

        Methods that rank gradients need `grads`. By default `rng` is the key of seed 0.
        """
        state = self._start(jax.random.key(0) if rng is None else rng, params)
        masks = self.put(state, self.rank(state, params, grads)).masks
        return finalize(params, masks), masks


def pick(tree: PyTree, paths: Iterable[Path]) -> Arrays:
    """Return the leaves of `tree` at `paths` as float32."""
    leaves = by_path(tree)
    return [jnp.asarray(leaves[path], jnp.float32) for path in paths]
