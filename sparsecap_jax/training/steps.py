"""Compiled steps: the only place where a model, a pruner, a loss and an optimizer meet."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning.masks import apply_masks
from sparsecap_jax.training import losses
from sparsecap_jax.training.state import TrainState, trainable
from sparsecap_jax.types import Batch, PyTree

Metrics = dict[str, jax.Array]


def make_mesh(devices: int, batch_size: int) -> Mesh:
    """A one-dimensional mesh, axis `data`, over the first `devices` accelerators (0: all).

    Raises:
        ConfigError: there are not so many, or they do not divide the batch evenly.
    """
    count = devices or jax.device_count()
    if count > jax.device_count():
        raise ConfigError(f"config.train.devices is {count}; only {jax.device_count()} are there")
    if batch_size % count:
        raise ConfigError(
            f"config.data.batch_size is {batch_size}; expected a multiple of {count} devices "
            "(config.train.devices)"
        )
    return jax.make_mesh((count,), ("data",), (AxisType.Auto,), devices=jax.devices()[:count])


def make_loss(model: nn.Module, pruner: Any, label_smoothing: float = 0.0) -> Callable:
    """The training loss of one batch as a function of the trained leaves.

    Returns:
        `loss(trained, masks, batch, step, rng) -> (loss [], metrics)`. `trained` is the
        optimizer's tree (`state.trainable`), `masks` the pruner's where it does not train them.
        Masks are sampled once and applied once; autodiff through both gives the mask gradients.
    """

    def loss_fn(trained: PyTree, masks: PyTree, batch: Batch, step: jax.Array, rng: jax.Array):
        masks = trained.get("masks", masks)
        mask_rng, dropout_rng = jax.random.split(rng)
        params = apply_masks(trained["params"], pruner.sample(masks, mask_rng))
        log_probs = model.apply(
            {"params": params}, batch.regions, batch.tokens, train=True,
            rngs={"dropout": dropout_rng},
        )  # fmt: skip
        caption_loss = losses.caption_loss(log_probs, batch, label_smoothing)
        penalty, metrics = pruner.penalty(masks, step)
        metrics = {"caption_loss": caption_loss, "sparsity_loss": penalty, **metrics}
        return caption_loss + penalty, metrics

    return loss_fn


def make_train_step(
    model: nn.Module,
    pruner: Any,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    label_smoothing: float = 0.0,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Compile the training step; the state is donated, the batch is split over the mesh.

    Returns:
        `step(state, batches) -> (state, metrics)`, where leaves of `batches` are `[N, B, ...]`:
        N steps are taken in one call, and metrics are the means over them.
    """
    loss_fn = make_loss(model, pruner, label_smoothing)

    def one(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        step_rng, update_rng = jax.random.split(jax.random.fold_in(state.rng, state.step))
        trained = trainable(state.params, state.prune.masks, pruner.trains_masks)
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, metrics), grads = grad_fn(trained, state.prune.masks, batch, state.step, step_rng)
        updates, opt_state = tx.update(grads, state.opt_state, trained)
        trained = optax.apply_updates(trained, updates)
        step = state.step + jnp.ones((), jnp.int32)
        prune = state.prune.replace(masks=trained.get("masks", state.prune.masks))
        prune = pruner.update(prune, trained["params"], grads["params"], step, update_rng)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads["params"]), **metrics}
        return TrainState(step, trained["params"], prune, opt_state, state.rng), metrics

    def many(state: TrainState, batches: Batch) -> tuple[TrainState, Metrics]:
        if batches.index.shape[0] == 1:  # spares the compiler a loop
            return one(state, jax.tree.map(lambda leaf: leaf[0], batches))
        state, metrics = jax.lax.scan(one, state, batches)
        return state, jax.tree.map(jnp.mean, metrics)

    replicated = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec(None, "data"))
    return jax.jit(
        many, in_shardings=(replicated, split), out_shardings=replicated, donate_argnums=0
    )


def make_validation_loss(model: nn.Module, pruner: Any) -> Callable[..., tuple]:
    """Compile the evaluation-mode loss of one batch.

    Returns:
        `loss(params, masks, batch) -> (sum of -log p over tokens [], number of tokens [])`, without
        dropout and with binarised masks, so that sums over batches give the mean per token.
    """

    def sums(params: PyTree, masks: PyTree, batch: Batch) -> tuple[jax.Array, jax.Array]:
        params = apply_masks(params, pruner.binarize(masks))
        log_probs = model.apply({"params": params}, batch.regions, batch.tokens)
        count = jnp.sum(batch.token_mask[..., 1:], dtype=jnp.float32)
        return losses.caption_loss(log_probs, batch) * count, count

    return jax.jit(sums)
