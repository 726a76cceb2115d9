"""What every pruner is and does: a frozen dataclass of settings with pure methods over pytrees."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, no_type_check

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning import masks as masks_lib
from sparsecap_jax.pruning.paths import Path, by_path, matching, nest, select, show
from sparsecap_jax.pruning.targets import Targets, make_targets
from sparsecap_jax.settings import Range, check_range
from sparsecap_jax.types import PyTree


# JAX rebuilds pytrees with leaves that are no arrays, so the fields are not checked at run time.
@no_type_check
@struct.dataclass
class PruneState:
    """What a pruner carries from step to step; a pytree.

    Attributes:
        masks: nested dict with the paths of the prunable parameters, float32: logits where masks
            are trained, {0, 1} otherwise.
        extras: dict of whatever else the method needs (initial weights, scores, counters).
    """

    masks: PyTree
    extras: PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pruner:
    """Base of all pruners: prunable leaves, frozen masks, and methods that do nothing.

    A subclass overrides what its method needs. Everything that runs once per training step
    (`sample`, `binarize`, `penalty`, `update`) is pure and may be jitted.

    Attributes:
        name: key in the registry.
        sparsity: target, the fraction of active masks to remove, 0 <= sparsity < 1.
        include: patterns over `a/b/kernel` that choose the prunable leaves instead of the rule by
            names (see `paths.select`); each must match a path in full.
        exclude: patterns of leaves that get no mask.
        freeze: patterns of leaves whose masks stay as they are: not trained, not recomputed, and
            not counted towards the target.
        overrides: texts `PATTERN=SPARSITY`: leaves with a target of their own; `sparsity` then
            holds for the others.
        hard_zero: write zeros into pruned weights, and into what the optimizer keeps for them,
            after every step, instead of leaving the values behind the masks.
        total_steps: length of training in optimizer steps.
        steps_per_epoch: length of an epoch, where a method's defaults depend on it.
        trains_masks: whether the optimizer owns `state.masks`.
        exact: whether the target count of nonzeros is met exactly.
        expects_trained: whether `prepare` wants trained weights rather than fresh ones.
        keeps_pruned: whether pruned weights are trained like the others.
        rewinds: whether `init` must see the initial weights, which `rewind` brings back.
        needs_masks: whether masks of an already pruned model must be loaded before `prepare`, or
            be read off its zeros there.
        batches_needed: how many batches `prepare` takes gradients of.
    """

    name: str = ""
    sparsity: float = 0.8
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    hard_zero: bool = False
    total_steps: int = 1
    steps_per_epoch: int | None = None

    trains_masks: ClassVar[bool] = False
    exact: ClassVar[bool] = True
    expects_trained: ClassVar[bool] = False
    keeps_pruned: ClassVar[bool] = False
    rewinds: ClassVar[bool] = False
    needs_masks: ClassVar[bool] = False

    def __post_init__(self):
        check_range("pruner.sparsity", self.sparsity, Range(0.0, 1.0, open_high=True))
        if self.hard_zero and (self.trains_masks or self.keeps_pruned):
            raise ConfigError(
                f"pruner.hard_zero is set, but {self.name!r} trains its pruned weights on"
            )
        if self.total_steps < 1:
            raise ConfigError(f"pruner: total_steps is {self.total_steps}; expected at least 1")

    @property
    def batches_needed(self) -> int:
        """How many batches `prepare` takes gradients of."""
        return 0

    def initial_value(self) -> float:
        """What a mask starts as."""
        return 1.0

    def init(self, rng: Array, params: PyTree) -> PruneState:
        """Fresh masks for the prunable leaves.

        Args:
            rng: a PRNG key, for methods that start at random.
            params: the parameters, at their initial values.

        Returns:
            The state.

        Raises:
            ConfigError: a pattern matches nothing, or nothing can be pruned.
        """
        leaves = by_path(params)
        paths = select(params, self.include, self.exclude)
        frozen = matching(self.freeze, paths, "pruner.freeze")
        self.targets({path: leaves[path].shape for path in paths if path not in frozen})
        value = self.initial_value()
        flat = {path: jnp.full(leaves[path].shape, value, jnp.float32) for path in paths}
        return PruneState(nest(flat), {})

    def load_masks(self, state: PruneState, masks: PyTree) -> PruneState:
        """Put stored masks into a state: logits where masks are trained, {0, 1} otherwise.

        Args:
            state: the state to change.
            masks: nested dict with exactly the paths and shapes of `state.masks`.

        Returns:
            The new state.

        Raises:
            ConfigError: paths or shapes differ, or masks that should be binary are not.
        """
        have, want = by_path(masks), by_path(state.masks)
        if have.keys() != want.keys():
            odd = sorted(show(path) for path in have.keys() ^ want.keys())
            raise ConfigError(f"stored masks and prunable leaves differ in {', '.join(odd[:8])}")
        masks_lib.check_fit(masks, state.masks)
        if not self.trains_masks:
            masks_lib.check_binary(masks)
        return state.replace(masks=nest({p: jnp.array(m, jnp.float32) for p, m in have.items()}))

    def prepare(
        self,
        state: PruneState,
        params: PyTree,
        grad_fn: Callable[[PyTree, Any], PyTree] | None = None,
        batches: Iterable[Any] = (),
    ) -> PruneState:
        """Do what the method does once, before training. Not for use inside jit.

        Args:
            state: what `init` returned, with any stored masks loaded.
            params: the parameters to prune, trained ones where the method `expects_trained`.
            grad_fn: `grad_fn(params, batch)` -> gradients of the loss, structured as params.
            batches: at least `batches_needed` batches.

        Returns:
            The state to train with.
        """
        return state

    def rewind(self, state: PruneState, params: PyTree) -> tuple[PruneState, PyTree]:
        """Exchange the weights after `prepare`: lottery tickets go back to their initial values.

        Args:
            state: what `prepare` returned.
            params: the current parameters.

        Returns:
            The state and the parameters to train with.
        """
        return state, params

    def sample(self, masks: PyTree, rng: Array | None = None) -> PyTree:
        """Masks for one training step.

        Args:
            masks: `state.masks`.
            rng: a PRNG key, where masks are drawn.

        Returns:
            Nested dict of float32 {0, 1} masks; differentiable where masks are trained.
        """
        return masks

    def binarize(self, masks: PyTree) -> PyTree:
        """Masks for evaluation, deterministic.

        Args:
            masks: `state.masks`.

        Returns:
            Nested dict of float32 {0, 1} masks.
        """
        return masks

    def penalty(
        self, masks: PyTree, step: Any
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Term that the method adds to the training loss.

        Args:
            masks: `state.masks`.
            step: int32 scalar, number of optimizer steps finished before this one.

        Returns:
            float32 scalar, and float32 scalars to log.
        """
        return jnp.zeros((), jnp.float32), {}

    def update(
        self,
        state: PruneState,
        params: PyTree,
        grads: PyTree | None,
        step: Any,
        rng: Array | None = None,
    ) -> PruneState:
        """Do what the method does after an optimizer step.

        Args:
            state: the state.
            params: the raw parameters after the step; pruned weights keep their values there.
            grads: the gradients of the step, where the method ranks them.
            step: int32 scalar, number of optimizer steps finished, this one included.
            rng: a PRNG key, where the method draws.

        Returns:
            The new state, same structure, shapes and dtypes.
        """
        return state

    def apply(self, params: PyTree, binary: PyTree) -> PyTree:
        """Parameters as the model sees them in training.

        Args:
            params: the raw parameters.
            binary: what `sample` returned.

        Returns:
            The masked parameters. Their gradient is that of `apply_masks`, unless the method
            needs gradients of pruned weights too.
        """
        return masks_lib.apply_masks(params, binary)

    def gradients(self, grads: PyTree, masks: PyTree) -> PyTree:
        """What the optimizer gets of the gradients by the parameters.

        Args:
            grads: gradients of the loss by the raw parameters.
            masks: `state.masks`.

        Returns:
            Gradients, same structure.
        """
        return grads

    def settle(self, params: PyTree, opt_state: PyTree, masks: PyTree) -> tuple[PyTree, PyTree]:
        """What becomes of pruned weights after a step: nothing, or zeros with `hard_zero`.

        Args:
            params: the raw parameters after the step.
            opt_state: the optimizer's state after the step.
            masks: `state.masks` after the step.

        Returns:
            The parameters and the optimizer's state to go on with.
        """
        if not self.hard_zero:
            return params, opt_state
        binary = self.binarize(masks)
        return masks_lib.finalize(params, binary), masks_lib.zero_moments(opt_state, binary)

    def instant_sparsify(
        self, params: PyTree, grads: PyTree | None = None, rng: Array | None = None
    ) -> tuple[PyTree, PyTree]:
        """Prune to the target at once, where the method can (see `Ranked`).

        Raises:
            ConfigError: the method finds its masks in training, or gets them from elsewhere.
        """
        raise ConfigError(f"pruner {self.name!r} cannot find masks from the weights at once")

    def wrap(self, tx: optax.GradientTransformation, state: PruneState | None = None):
        """An optimizer that prunes: for training loops that know of nothing else.

        See `sparsecap_jax.pruning.wrapped.wrap`.
        """
        from sparsecap_jax.pruning.wrapped import wrap

        return wrap(self, tx, state)

    def targets(self, shapes: dict[Path, tuple[int, ...]]) -> Targets:
        """How much of what goes.

        Args:
            shapes: shapes of the active masks by path, in order.

        Returns:
            The groups of tensors, and the sparsity of each.

        Raises:
            ConfigError: an override is malformed or matches nothing.
        """
        return make_targets(shapes, self.sparsity, "global", self.overrides)

    def reached(self, binary: PyTree, tolerance: float = 0.05) -> bool:
        """Whether the number of nonzeros among the active masks is near its target.

        Args:
            binary: nested dict of {0, 1} masks.
            tolerance: largest distance from the target number, as a fraction of it.

        Returns:
            True where a checkpoint with these masks may count as the best.
        """
        active, _ = self.split(binary)
        if not active:
            return True
        targets = self.targets({path: mask.shape for path, mask in active.items()})
        gone = [k / n for k, n in zip(targets.removals(), targets.sizes, strict=True)]
        sizes = [mask.size for mask in active.values()]
        goal = sum(n * (1.0 - gone[g]) for n, g in zip(sizes, targets.groups, strict=True))
        goal /= sum(sizes)
        kept = 1.0 - float(masks_lib.overall_sparsity(nest(active)))
        return abs(kept - goal) <= tolerance * goal

    def begun(self, masks: PyTree) -> bool:
        """Whether the method has pruned anything yet; outside jit.

        Args:
            masks: `state.masks`.

        Returns:
            True where an active mask, binarized, has a zero. Also True where there is nothing to
            prune: without active masks, or at a target that removes none of their weights.
        """
        active, _ = self.split(masks)
        if not active:
            return True
        if not any(self.targets({p: mask.shape for p, mask in active.items()}).removals()):
            return True
        binary, _ = self.split(self.binarize(masks))
        return any(bool(jnp.any(mask == 0)) for mask in binary.values())

    def on_target(self, sparsity: float, tolerance: float = 0.05) -> bool:
        """Whether the number of nonzeros lies within a tolerance of its target.

        Args:
            sparsity: fraction removed over all masks.
            tolerance: largest distance from the target number of nonzeros, as a fraction of it.

        Returns:
            True where a checkpoint of this sparsity may count as the best.
        """
        return abs(self.sparsity - sparsity) <= tolerance * (1.0 - self.sparsity)

    def split(self, masks: PyTree) -> tuple[dict[Path, Any], dict[Path, Any]]:
        """Masks by path: the active ones, and those that `freeze` holds."""
        flat = by_path(masks)
        frozen = matching(self.freeze, flat, "pruner.freeze") if self.freeze else set()
        active = {path: mask for path, mask in flat.items() if path not in frozen}
        return active, {path: flat[path] for path in flat if path in frozen}


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoPruner(Pruner):
    """No masks at all: dense training through the same interface."""

    sparsity: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.sparsity:
            raise ConfigError(f"pruner.sparsity is {self.sparsity}, but pruner.name is 'none'")

    def init(self, rng: Array, params: PyTree) -> PruneState:
        """A state without masks."""
        return PruneState({}, {})


def copy_tree(tree: PyTree) -> PyTree:
    """A copy in buffers of its own, so that both may be donated."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)
