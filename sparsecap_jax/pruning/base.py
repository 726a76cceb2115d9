"""Interface of all pruners: frozen dataclasses of settings with pure methods over pytrees."""

import dataclasses
import typing
from collections.abc import Callable, Iterable
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning import masks as masks_lib
from sparsecap_jax.pruning.paths import (
    Path,
    by_path,
    like,
    listed,
    matching,
    replaced,
    select,
)
from sparsecap_jax.pruning.states import PruneState
from sparsecap_jax.pruning.targets import Targets, make_targets
from sparsecap_jax.pruning.wrapping import wrap
from sparsecap_jax.settings import Range, checked, fields_of
from sparsecap_jax.types import PyTree

Target = Annotated[float, Range(0.0, 1.0, open_high=True)]
GradFn = Callable[[PyTree, Any], PyTree] | None
Scalar = Float[Array, ""]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pruner:
    """Base of all pruners: chooses the prunable leaves; its other methods change nothing.

    A subclass overrides what its method needs. Everything that runs once per training step
    (`sample`, `binarize`, `penalty`, `update`) is pure and may be jitted. Arguments of one name
    mean the same in all methods:

        params  the raw parameters, any pytree; pruned weights keep their values there
        grads   gradients of the loss with respect to `params`, same structure
        masks   `state.masks`; `binary` those of `sample` or `binarize`, float32 {0, 1}
        step    int32 scalar, number of optimizer steps finished
        rng     a PRNG key, for methods that draw

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
        hard_zero: keep zeros in pruned weights, and in the optimizer's state of them, from the
            first step on, instead of leaving the values behind the masks.
        total_steps: length of training in optimizer steps.
        steps_per_epoch: length of an epoch, where a method's defaults depend on it.
        trains_masks: whether the optimizer owns `state.masks`.
        expects_trained: whether `prepare` wants trained weights rather than fresh ones.
        keeps_pruned: whether pruned weights are trained like the others.
        rewinds: whether `init` must see the initial weights, which `rewind` brings back.
        needs_masks: whether masks of an already pruned model must be loaded before `prepare`, or
            be read off its zeros there.
        fixed_masks: whether masks stay the same once training has begun.
        batches_needed: number of batches whose gradients `prepare` adds up.
        init_value: value that every mask starts with.
        mask_optimizer: learning rate and epsilon of the Adam that trains masks by default.
    """

    name: str = ""
    sparsity: Target = 0.8
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    hard_zero: bool = False
    total_steps: Annotated[int, Range(1)] = 1
    steps_per_epoch: int | None = None

    trains_masks: ClassVar[bool] = False
    expects_trained: ClassVar[bool] = False
    keeps_pruned: ClassVar[bool] = False
    rewinds: ClassVar[bool] = False
    needs_masks: ClassVar[bool] = False
    fixed_masks: ClassVar[bool] = False
    batches_needed: ClassVar[int] = 0
    init_value: ClassVar[float] = 1.0
    mask_optimizer: ClassVar[tuple[float, float]] = (100.0, 1e-2)

    def __post_init__(self):
        fields = fields_of(type(self))
        for key, field in fields.items():
            if field.range or typing.get_origin(field.hint) is Literal:
                checked(getattr(self, key), fields, key, "pruner")
        if self.hard_zero and (self.trains_masks or self.keeps_pruned):
            raise ConfigError(
                f"pruner.hard_zero is set, but {self.name!r} trains its pruned weights on"
            )

    def init(self, rng: Array, params: PyTree) -> PruneState:
        """Return fresh masks for the prunable leaves; with `rewinds`, a copy of `params` as well.

        Raises:
            ConfigError: a pattern matches nothing, or nothing can be pruned.
        """
        leaves = by_path(params)
        paths = select(params, self.include, self.exclude)
        frozen = matching(self.freeze, paths, "pruner.freeze")
        self.targets({path: leaves[path] for path in paths if path not in frozen})
        # Placed as their parameters are, on however many devices.
        first = {p: jnp.full_like(leaves[p], self.init_value, dtype=jnp.float32) for p in paths}
        masks = like(params, first)
        # Buffers of their own, so that parameters and state may both be donated.
        copy = {"initial": jax.tree.map(jnp.array, params)} if self.rewinds else {}
        return PruneState(masks, copy)

    def load_masks(self, state: PruneState, masks: PyTree) -> PruneState:
        """Put stored masks into a state: logits where masks are trained, {0, 1} otherwise.

        Raises:
            ConfigError: paths or shapes differ, or masks that should be binary are not.
        """
        stored, expected = by_path(masks), by_path(state.masks)
        if stored.keys() != expected.keys():
            odd = listed(sorted(stored.keys() ^ expected.keys()))
            raise ConfigError(f"stored masks and prunable leaves differ in {odd}")
        masks_lib.check_fit(masks, state.masks)
        if not self.trains_masks:
            masks_lib.check_binary(masks)
        arrays = {path: jnp.array(mask, jnp.float32) for path, mask in stored.items()}
        return state.replace(masks=replaced(state.masks, arrays))

    def prepare(
        self, state: PruneState, params: PyTree, grad_fn: GradFn = None, batches: Iterable[Any] = ()
    ) -> PruneState:
        """Find the masks of methods that prune before training. Not for use inside jit.

        Args:
            state: the state from `init`, with any stored masks loaded.
            params: the parameters to prune, trained ones where the method `expects_trained`.
            grad_fn: `grad_fn(params, batch) -> grads`.
            batches: at least `batches_needed` batches.

        Raises:
            ConfigError: gradients are needed, and there is no `grad_fn` or too few batches.
        """
        return state

    def rewind(self, state: PruneState, params: PyTree) -> tuple[PruneState, PyTree]:
        """Exchange the weights after `prepare`: lottery tickets go back to their initial values.

        Returns:
            The state, without the copy that `init` made, and the parameters to train with.
        """
        if not self.rewinds:
            return state, params
        return state.replace(extras={}), state.extras["initial"]

    def sample(self, masks: PyTree, rng: Array | None = None) -> PyTree:
        """Return the {0, 1} masks of one training step; differentiable where masks are trained."""
        return masks

    def binarize(self, masks: PyTree) -> PyTree:
        """Return the {0, 1} masks of evaluation, deterministic."""
        return masks

    def penalty(self, masks: PyTree, step: Any) -> tuple[Scalar, dict[str, Scalar]]:
        """Return the term that the method adds to the training loss, and scalars to log."""
        return jnp.zeros((), jnp.float32), {}

    def readings(self, masks: PyTree) -> dict[str, Scalar]:
        """Return scalars of the masks that are worked out only when they are logged."""
        return {}

    def update(
        self, state: PruneState, params: PyTree, grads: PyTree | None, step: Any, rng: Any = None
    ) -> PruneState:
        """Return the state after an optimizer step, same structure, shapes and dtypes.

        `params` are those after the step, `step` counts it, and `grads` are what `evidence` made of
        its gradients, where the method ranks them.
        """
        return state

    def changes(self, step: Any) -> Any:
        """Return whether `update` may return other masks at this step: a bool, or bool `[]`."""
        return not self.fixed_masks

    def evidence(self, grads: PyTree, opt_state: PyTree, params: PyTree) -> PyTree:
        """Return what `update` gets as `grads`: gradients, or what the optimizer made of them."""
        return grads

    def apply(self, params: PyTree, binary: PyTree) -> PyTree:
        """Return the masked parameters, as the model sees them in training.

        Their gradient is that of `apply_masks`, unless the method needs gradients of pruned weights
        too.
        """
        return masks_lib.apply_masks(params, binary)

    def gradients(self, grads: PyTree, masks: PyTree) -> PyTree:
        """Return the gradients that the optimizer receives."""
        return grads

    def settle(self, params: PyTree, opt_state: PyTree, masks: PyTree) -> tuple[PyTree, PyTree]:
        """Finish a step: with `hard_zero`, write zeros into pruned weights and their momenta."""
        if not self.hard_zero:
            return params, opt_state
        binary = self.binarize(masks)
        return masks_lib.finalize(params, binary), masks_lib.zero_moments(opt_state, binary, params)

    def instant_sparsify(
        self, params: PyTree, grads: PyTree | None = None, rng: Array | None = None
    ) -> tuple[PyTree, PyTree]:
        """Prune to the target at once; a ConfigError where the method cannot (see `Ranked`)."""
        raise ConfigError(f"pruner {self.name!r} cannot find masks from the weights at once")

    def wrap(
        self, tx: optax.GradientTransformation, state: PruneState | None = None
    ) -> optax.GradientTransformationExtraArgs:
        """Prune inside an optimizer: after every update the pruned weights are exactly 0.

        For loops that only know an optimizer. They differentiate their loss at the parameters as
        they are, zeros in place, so gradients reach pruned weights. The optimizer takes its step
        with them; at the events of the schedule masks are found on the result, and all pruned
        weights are set to 0. By default the weights given to `init` are prepared; methods that need
        gradients of batches first take a prepared `state`.

        Returns:
            A transformation whose state is a `states.WrappedState`. Its `update` needs `params`.

        Raises:
            ConfigError: the method needs the training step, or a prepared state.
        """
        return wrap(self, tx, state)

    def targets(self, active: dict[Path, Any]) -> Targets:
        """Return the groups of tensors that are ranked together, and the sparsity of each.

        Only shapes are read of the active masks or parameters.

        Raises:
            ConfigError: an override is malformed or matches nothing.
        """
        shapes = {path: leaf.shape for path, leaf in active.items()}
        return make_targets(shapes, self.sparsity, "global", self.overrides)

    def reached(self, binary: PyTree, tolerance: float = 0.05) -> bool:
        """Return whether a checkpoint with these masks may count as the best.

        The number of nonzeros among the active masks must be near its target; `tolerance` is the
        largest distance, as a fraction of the target.
        """
        active, _ = self.split(binary)
        if not active:
            return True
        targets = self.targets(active)
        gone = [k / n for k, n in zip(targets.removals(), targets.sizes, strict=True)]
        sizes = [mask.size for mask in active.values()]
        left = [n * (1.0 - gone[g]) for n, g in zip(sizes, targets.groups, strict=True)]
        goal = sum(left) / sum(sizes)
        kept = 1.0 - float(masks_lib.overall_sparsity(list(active.values())))
        return abs(kept - goal) <= tolerance * goal

    def begun(self, masks: PyTree) -> bool:
        """Return whether the method has pruned anything yet. Not for use inside jit.

        Also True where there is nothing to prune.
        """
        active, _ = self.split(masks)
        if not active or not any(self.targets(active).removals()):
            return True
        binary, _ = self.split(self.binarize(masks))
        return any(bool(jnp.any(mask == 0)) for mask in binary.values())

    def split(self, masks: PyTree) -> tuple[dict[Path, Any], dict[Path, Any]]:
        """Return the masks by path: the active ones, and those that `freeze` holds."""
        flat = by_path(masks)
        frozen = {path: flat[path] for path in sorted(matching(self.freeze, flat, "pruner.freeze"))}
        return {path: mask for path, mask in flat.items() if path not in frozen}, frozen
