"""The sparse step: the one place where a pruner, a loss and an optimizer meet.

    step = sparse_step(pruner, tx, loss_fn)
    state = step.init(rng, params)
    state, metrics = jax.jit(step)(state, batch)
    params, masks = step.finish(state)

It is right for every pruner: masks are sampled once and applied once, gradients reach the mask
logits of supermasks and the pruned weights of RigL, and the optimizer sees what it should.
"""

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterable
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax
from jaxtyping import Array, Int, Key

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning.base import Pruner, PruneState
from sparsecap_jax.pruning.masks import apply_masks, finalize, overall_sparsity
from sparsecap_jax.pruning.packed import packed, packed_step, take_kept
from sparsecap_jax.pruning.paths import by_path, is_nnx_module, listed
from sparsecap_jax.types import PyTree

logger = logging.getLogger(__name__)

Metrics = dict[str, jax.Array]
# (params, evaluated, inputs, step, rng) -> (loss, gradients with respect to params, metrics)
Gradient = Callable[[PyTree, PyTree | None, Any, Array, Array], tuple[Array, PyTree, Metrics]]


@no_type_check  # JAX rebuilds pytrees with leaves that are not arrays
@struct.dataclass
class TrainState:
    """The state that one training step turns into the next; a pytree.

    Attributes:
        step: int32 `[]`, number of steps taken.
        params: the weights, dense: masks are applied to them in the step. With `hard_zero` of the
            pruner, pruned ones are 0 from the start.
        prune: the pruner's masks and extras.
        opt_state: optimizer state, `{"params": ...}`, with an entry `"masks"` where these are
            trained.
        rng: key of the run; every step folds its own number in.
    """

    step: Int[Array, ""]
    params: PyTree
    prune: PruneState
    opt_state: optax.OptState
    rng: Key[Array, ""]

    def replace(self, **changes: Any) -> "TrainState":
        """Return a copy with other values of some fields."""
        return dataclasses.replace(self, **changes)


@dataclasses.dataclass(frozen=True, eq=False)
class SparseStep:
    """A training step with pruning, as a pure function of state and inputs.

    Attributes:
        pruner: chooses and samples the masks.
        tx: optimizer over `{"params": ...}`, and `"masks"` where the pruner trains them; see
            `by_entry`.
        gradient: `(params, evaluated, inputs, step, rng) -> (loss, grads, metrics)`. `params` are
            the masked weights; `evaluated` those of evaluation mode, None where they are the same.
        packs: whether the optimizer keeps state of the kept weights alone, see `packed`, and masks
            are stored as bool. A ConfigError unless the pruner has `fixed_masks`.
    """

    pruner: Pruner
    tx: optax.GradientTransformation
    gradient: Gradient | None = None
    packs: bool = False

    def __post_init__(self):
        if self.packs and not self.pruner.fixed_masks:
            raise ConfigError(
                f"pruner {self.pruner.name!r} has no masks that stay the same from the first step "
                "on, as an optimizer that packs kept weights needs (mask_freeze has)"
            )

    def init(
        self,
        rng: Array,
        params: PyTree,
        *,
        batches: Iterable[Any] = (),
        masks: PyTree = None,
        initial: PyTree = None,
    ) -> TrainState:
        """Return the state before the first step; outside jit.

        Args:
            rng: a PRNG key, kept in the state.
            params: the weights to train or, for methods that prune a trained model, its weights.
            batches: inputs of `gradient`, for methods that rank gradients before training (SNIP).
            masks: masks to start from, for methods that keep those of a pruned model.
            initial: the weights before any training, for lottery tickets, which return to them.

        Raises:
            ConfigError: the method needs an argument that is missing, or it does not fit.
        """
        pruner = self.pruner
        _check_arrays(params)
        if pruner.rewinds and initial is None:
            raise ConfigError(
                f"pruner {pruner.name!r} returns to the weights before training: "
                "give init(..., initial=PARAMS)"
            )
        mask_rng, grad_rng = jax.random.split(jax.random.fold_in(rng, 1))
        first = params if initial is None else initial
        prune = pruner.init(mask_rng, jax.tree.map(jnp.asarray, first))
        if masks is not None:
            prune = pruner.load_masks(prune, masks)
        batches = list(itertools.islice(batches, pruner.batches_needed))
        if len(batches) < pruner.batches_needed:
            raise ConfigError(
                f"pruner {pruner.name!r} ranks gradients of {pruner.batches_needed} batches before "
                f"training, got {len(batches)}: give init(..., batches=[BATCH, ...])"
            )

        @jax.jit
        def grad_fn(params: PyTree, inputs: Any) -> PyTree:
            return self._gradient(params, None, inputs, jnp.zeros((), jnp.int32), grad_rng)[1]

        prune = pruner.prepare(prune, params, grad_fn, batches)
        return self.start(rng, *pruner.rewind(prune, params))

    def start(self, rng: Array, prune: PruneState, params: PyTree) -> TrainState:
        """Return the state at step 0 of weights and masks that are ready: fresh optimizer state."""
        tx = self.tx
        if self.pruner.hard_zero:
            params = finalize(params, self.pruner.binarize(prune.masks))
        if self.packs:
            tx = packed(tx, {"params": prune.masks})
            prune = prune.replace(masks=jax.tree.map(lambda mask: mask != 0, prune.masks))
        opt_state = tx.init(self._trained(params, prune.masks))
        self.pruner.evidence(params, opt_state, params)  # fails here where there is none
        return TrainState(jnp.zeros((), jnp.int32), params, prune, opt_state, rng)

    def __call__(self, state: TrainState, inputs: Any) -> tuple[TrainState, Metrics]:
        """Take one step; for use under jit.

        Args:
            state: before the step; may be donated.
            inputs: passed to `gradient`.

        Returns:
            The state after the step, and float32 scalars: `loss` (with the pruner's penalty),
            `sparsity_loss` (the penalty), `grad_norm`, `sparsity` of the masks after the step
            where there are any (supermasks: before it), and the metrics of loss and pruner.
        """
        pruner, masks = self.pruner, state.prune.masks
        step_rng, update_rng = jax.random.split(jax.random.fold_in(state.rng, state.step))
        mask_rng, loss_rng = jax.random.split(step_rng)
        trained = self._trained(state.params, masks)

        def pruned(trained: PyTree) -> PyTree:
            binary = pruner.sample(trained.get("masks", masks), mask_rng)
            return pruner.apply(trained["params"], binary)

        binary = pruner.binarize(masks) if pruner.trains_masks else None
        evaluated = None if binary is None else apply_masks(state.params, binary)
        params, pull = jax.vjp(pruned, trained)
        if pruner.hard_zero:
            params = state.params  # zeros are in place: spares a pass over weights and masks
        loss, grads, metrics = self._gradient(params, evaluated, inputs, state.step, loss_rng)
        (grads,) = pull(grads)
        if pruner.trains_masks:
            value_and_grad = jax.value_and_grad(pruner.penalty, has_aux=True)
            (penalty, penalty_metrics), pushed = value_and_grad(masks, state.step)
            grads["masks"] = jax.tree.map(jnp.add, grads["masks"], pushed)
        else:
            penalty, penalty_metrics = pruner.penalty(masks, state.step)
        kept = {**grads, "params": pruner.gradients(grads["params"], masks)}
        if self.packs:
            kept = take_kept(kept, state.opt_state.places)
            trained, opt_state = packed_step(self.tx, kept, state.opt_state, trained)
        else:
            updates, opt_state = self.tx.update(kept, state.opt_state, trained)
            trained = optax.apply_updates(trained, updates)
        if pruner.hard_zero:
            trained = {**trained, "params": finalize(trained["params"], masks)}
        step = state.step + jnp.ones((), jnp.int32)
        prune = state.prune.replace(masks=trained.get("masks", masks))
        ranked = pruner.evidence(grads["params"], opt_state, trained["params"])
        prune = pruner.update(prune, trained["params"], ranked, step, update_rng)
        params = trained["params"]
        if pruner.hard_zero:
            params, opt_state = self._settled(params, opt_state, prune.masks, step)
        metrics = {"grad_norm": optax.tree.norm(kept["params"]), **metrics}
        metrics |= {"loss": loss + penalty, "sparsity_loss": penalty}
        if jax.tree.leaves(prune.masks):
            # Reading the old masks once more would cost a copy of donated buffers.
            metrics["sparsity"] = overall_sparsity(pruner.binarize(prune.masks))
        return TrainState(step, params, prune, opt_state, state.rng), metrics | penalty_metrics

    def finish(self, state: TrainState) -> tuple[PyTree, PyTree]:
        """Return the pruned weights, zeros in place, and their binary masks; outside jit.

        Logs a warning where the pruner has not pruned anything.
        """
        warn_unless_begun(self.pruner, state.prune.masks)
        binary = self.pruner.binarize(state.prune.masks)
        return finalize(state.params, binary), binary

    def _settled(
        self, params: PyTree, opt_state: PyTree, masks: PyTree, step: Array
    ) -> tuple[PyTree, PyTree]:
        """Write zeros where masks may have changed.

        In between, and of weights that return, momenta without a gradient are zeros. To write them
        in every step, or to look at the old masks, would cost a pass over each array.
        """
        due = self.pruner.changes(step)
        if due is False:
            return params, opt_state

        def keep(params: PyTree, opt_state: PyTree, masks: PyTree) -> tuple[PyTree, PyTree]:
            return params, opt_state

        return lax.cond(due, self.pruner.settle, keep, params, opt_state, masks)

    @property
    def _gradient(self) -> Gradient:
        assert self.gradient is not None
        return self.gradient

    def _trained(self, params: PyTree, masks: PyTree) -> dict[str, PyTree]:
        """Return the tree that the optimizer owns."""
        return {"params": params, **({"masks": masks} if self.pruner.trains_masks else {})}


def sparse_step(
    pruner: Pruner,
    tx: optax.GradientTransformation,
    loss_fn: Callable[[PyTree, Any, Array], Any],
    *,
    mask_tx: optax.GradientTransformation | None = None,
    packs: bool = False,
) -> SparseStep:
    """Build the training step of a loss under a pruner.

    Args:
        pruner: from `make_pruner`.
        tx: optimizer of the weights.
        loss_fn: `(params, batch, rng) -> loss`, or `-> (loss, metrics)` with a dict of scalars.
        mask_tx: optimizer of mask logits; by default Adam, with the pruner's `mask_optimizer` as
            learning rate and epsilon, 100 and 1e-2 for supermasks.
        packs: whether the optimizer keeps state of the kept weights alone; for masks that stay.

    Returns:
        The step, see `SparseStep`.

    Raises:
        ConfigError: `packs`, and the pruner changes its masks.

    References:
        Tan et al., "End-to-end supermask pruning" (2022), arXiv 2110.03298 (the masks' optimizer).
    """
    groups = {"params": tx}
    if pruner.trains_masks:
        rate, epsilon = pruner.mask_optimizer
        groups["masks"] = optax.adam(rate, eps=epsilon) if mask_tx is None else mask_tx

    def scalar(params: PyTree, batch: Any, rng: Array) -> tuple[Array, Metrics]:
        result = loss_fn(params, batch, rng)
        return result if isinstance(result, tuple) else (result, {})

    def gradient(params, evaluated, batch, step, rng):
        (loss, metrics), grads = jax.value_and_grad(scalar, has_aux=True)(params, batch, rng)
        return loss, grads, metrics

    return SparseStep(pruner, by_entry(groups), gradient, packs)


def _check_arrays(params: PyTree) -> None:
    """Raise a ConfigError where parameters cannot be trained as they are, with the way out."""
    if is_nnx_module(params):
        raise ConfigError(
            "params is a module of NNX; train its state: graph, params = nnx.split(model), with "
            "nnx.merge(graph, params) in the loss, or give pruner.wrap(tx) to nnx.Optimizer"
        )
    odd = [path for path, leaf in by_path(params).items() if not _is_array(leaf)]
    if odd:
        raise ConfigError(
            f"params holds what is no array ({listed(odd)}); train the arrays alone, as in "
            "params, static = eqx.partition(model, eqx.is_inexact_array)"
        )


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") or isinstance(leaf, bool | int | float | complex)


def warn_unless_begun(pruner: Pruner, masks: PyTree) -> bool:
    """Return whether pruning has begun; log a warning where it should have, but has not."""
    begun = pruner.begun(masks)
    if not begun:
        scheduled = getattr(pruner, "schedule", None)
        hint = "were its events beyond the last step?" if scheduled else "do its mask logits learn?"
        message = "pruner %r never pruned a weight, but its target sparsity is %g: %s"
        logger.warning(message, pruner.name, pruner.sparsity, hint)
    return begun


def by_entry(groups: dict[str, optax.GradientTransformation]) -> optax.GradientTransformation:
    """Build a transformation over dicts with exactly these entries, one for each.

    Unlike `optax.partition` its state holds no placeholders for the other entries, so that it is
    saved and restored as the plain dict it is. A tree with other entries is a ConfigError.
    """

    def check(tree):
        if set(tree) != set(groups):
            raise ConfigError(f"optimizer expects entries {sorted(groups)}, got {sorted(tree)}")

    def init(params):
        check(params)
        return {name: group.init(params[name]) for name, group in groups.items()}

    def update(updates, state, params=None):
        check(updates)
        params = params or dict.fromkeys(groups)
        results = {n: tx.update(updates[n], state[n], params[n]) for n, tx in groups.items()}
        return {n: r[0] for n, r in results.items()}, {n: r[1] for n, r in results.items()}

    return optax.GradientTransformation(init, update)
