"""Compiled steps over a device mesh."""

import ctypes
import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from sparsecap_jax.pruning import Pruner
from sparsecap_jax.pruning.masks import apply_masks
from sparsecap_jax.pruning.step import Metrics, SparseStep, TrainState
from sparsecap_jax.training import losses
from sparsecap_jax.training.objectives import Objective
from sparsecap_jax.types import Batch, PyTree


def release_freed_memory() -> bool:
    """Give freed memory back to the system; return whether there was any.

    glibc keeps what the compiler freed, which after a large step is a gigabyte on top of what the
    step itself needs. Elsewhere nothing is done.
    """
    trim = sys.platform == "linux" and getattr(ctypes.CDLL(None), "malloc_trim", None)
    return bool(trim and trim(0))


def compiled_ahead(
    jitted: Callable[..., Any], ready: Callable[[], Any] | None = None
) -> Callable[..., Any]:
    """Wrap a jitted function: freed memory is given back before and after each compilation.

    Its static arguments are hashable and come by position. `ready` is called once one is compiled.
    """
    compiled = set()

    def call(*args):
        leaves = jax.tree.leaves(args)
        shapes = tuple((x.shape, x.dtype) if hasattr(x, "shape") else x for x in leaves)
        if shapes not in compiled:
            release_freed_memory()
            jitted.lower(*args).compile()  # the call below finds it in JAX's memory
            release_freed_memory()
            compiled.add(shapes)
            if ready:
                ready()
        return jitted(*args)

    return call


def state_items(state: TrainState) -> dict[str, PyTree]:
    """Return the trees of a state by the names they have in checkpoints and messages."""
    trees = (state.params, state.prune.masks, state.prune.extras, state.opt_state)
    return dict(zip(("params", "masks", "extras", "optimizer"), trees, strict=True))


def suspects(state: TrainState) -> dict[str, jax.Array]:
    """Return the float leaves of a state by name, such as `masks/decoder/kernel`."""
    return {
        f"{item}/{jax.tree_util.keystr(path, simple=True, separator='/')}": leaf
        for item, tree in state_items(state).items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    }


def first_fault(values: Iterable[jax.Array]) -> Int[Array, ""]:
    """Return the number, from 1, of the first array that is not finite; 0: all are."""
    faults = [~jnp.all(jnp.isfinite(value)) for value in values]
    return jnp.argmax(jnp.stack([jnp.array(False), *faults])).astype(jnp.int32)


def fault_names(state: TrainState, pruner: Pruner) -> list[str]:
    """Return the meanings of the faults 1, 2, ... that the training step reports."""
    leaves = list(suspects(state))
    trained = ("params/", "masks/") if pruner.trains_masks else "params/"
    grads = [f"the gradient of {name}" for name in leaves if name.startswith(trained)]
    return ["the loss", *grads, *leaves]


def make_train_step(
    objective: Objective,
    pruner: Pruner,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    *,
    skip_nonfinite: bool = False,
    packs: bool = False,
    shardings: TrainState | None = None,
    ready: Callable[[], Any] | None = None,
    put: Callable[[PyTree, PyTree], PyTree] = jax.device_put,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Compile the training step; the state is donated, inputs are split over the mesh.

    Args:
        objective: the loss.
        pruner: chooses and samples the masks.
        tx: the optimizer.
        mesh: the devices.
        skip_nonfinite: whether a step that is not finite leaves all but the step number as it was,
            which takes memory for a second state.
        packs: see `SparseStep`.
        shardings: those of a state, see `Placement.shardings`; None: all of it on every device.
        ready: called between a compilation and the step; processes may wait for each other there.
        put: puts a tree where a tree of shardings says.

    Returns:
        `step(state, inputs, static) -> (state, metrics)`. `inputs` and `static` are what
        `objective.inputs` returned for N batches: N steps are taken in one call, and metrics are
        means over them, except `fault`, int32 `[N]`: 0 for a step of finite loss and gradients,
        else the first fault by its number in `fault_names`. The state itself is looked at where
        steps are skipped.
    """
    places: dict[str, PyTree] | None = None
    if shardings is not None:
        places = {"params": shardings.params}
        if pruner.trains_masks:
            places["masks"] = shardings.prune.masks
    constrain = jax.lax.with_sharding_constraint

    def many(state: TrainState, inputs: PyTree, resources: PyTree, static: Any):
        gradient = partial(objective, static=static, resources=resources)

        def watched(state: TrainState, inputs: PyTree) -> tuple[TrainState, Metrics]:
            grads: dict[str, PyTree] = {}

            def update(updates, opt_state, params=None):
                updates = updates if places is None or packs else constrain(updates, places)
                grads.update(updates)
                return tx.update(updates, opt_state, params)

            step = SparseStep(pruner, tx._replace(update=update), gradient, packs)
            new, metrics = step(state, inputs)
            leaves = jax.tree.leaves([grads[key] for key in ("params", "masks") if key in grads])
            # As within grad_norm, so that they are computed once.
            squares = [jnp.sum(jnp.square(leaf)) for leaf in leaves]
            checked = suspects(new).values() if skip_nonfinite else ()
            fault = first_fault([metrics["loss"], *squares, *checked])
            if skip_nonfinite:
                kept = jax.tree.map(partial(jnp.where, fault == 0), new, state)
                new = kept.replace(step=new.step)
            return new, metrics | {"fault": fault}

        if jax.tree.leaves(inputs)[0].shape[0] == 1:  # spares the compiler a loop
            state, metrics = watched(state, jax.tree.map(lambda leaf: leaf[0], inputs))
            return state, metrics | {"fault": metrics["fault"][None]}
        state, metrics = jax.lax.scan(watched, state, inputs)
        faults = metrics.pop("fault")
        counted: dict[str, Any] = {"where": faults == 0} if skip_nonfinite else {}
        means = {key: jnp.mean(values, **counted) for key, values in metrics.items()}
        return state, means | {"fault": faults}

    replicated = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec(None, "data"))
    whole = replicated if shardings is None else shardings
    placed: dict[str, Any]
    placed = {"in_shardings": (whole, split, replicated), "out_shardings": (whole, replicated)}
    compiled = compiled_ahead(jax.jit(many, static_argnums=3, donate_argnums=0, **placed), ready)
    resources = objective.resources
    resources = put(resources, jax.tree.map(lambda _: replicated, resources))
    return lambda state, inputs, static=None: compiled(state, inputs, resources, static)


def make_validation_loss(model: nn.Module, pruner: Pruner) -> Callable[..., tuple]:
    """Compile the evaluation-mode loss of one batch.

    Returns:
        `loss(params, masks, batch) -> (sum of -log p over tokens [], number of tokens [])`, without
        dropout and with binarised masks, so that sums over batches give the mean per token.
    """

    def sums(params: PyTree, masks: PyTree, batch: Batch) -> tuple[jax.Array, jax.Array]:
        params = apply_masks(params, pruner.binarize(masks))
        log_probs: Any = model.apply({"params": params}, batch.regions, batch.tokens)
        count = jnp.sum(batch.token_mask[..., 1:], dtype=jnp.float32)
        return losses.caption_loss(log_probs, batch) * count, count

    return jax.jit(sums)
