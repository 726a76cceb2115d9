"""Compiled steps: the only place where a model, a pruner, a loss and an optimizer meet."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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


def words_to_pack(token_mask: np.ndarray, shards: int = 1, least: int = 64) -> int:
    """Choose the number of slots that the packed training loss needs for a batch.

    Few sizes occur, so that few steps are compiled: multiples of a sixteenth of all tokens.

    Args:
        token_mask: bool `[..., B, S, T]`; of several batches the fullest decides.
        shards: parts that B is split into, each packed apart.
        least: sizes are this far apart at least: for fewer words no compilation pays.

    Returns:
        Slots per shard, at most `B / shards * S * (T - 1)`.
    """
    counted = np.asarray(token_mask)[..., 1:]
    images, captions, length = counted.shape[-3:]
    most = images // shards * captions * length
    counts = counted.reshape(-1, shards, most).sum(axis=-1)
    unit = max(least, -(-most // 16))
    return min(most, unit * max(1, -(-int(counts.max()) // unit)))


def make_loss(
    model: nn.Module,
    pruner: Any,
    label_smoothing: float = 0.0,
    shards: int = 1,
    sample_prob: Callable[[jax.Array], jax.Array] | None = None,
) -> Callable:
    """The training loss of one batch as a function of the trained leaves.

    Args:
        model: the captioner.
        pruner: how masks become weights.
        label_smoothing: see `losses.cross_entropy`.
        shards: parts that the images are split into, one per device: words are packed within a
            shard, and each has dropout of its own.
        sample_prob: probability of scheduled sampling at a step; None for models without.

    Returns:
        `loss(trained, masks, batch, step, rng, words=0) -> (loss [], metrics)`. `trained` is the
        optimizer's tree (`state.trainable`), `masks` the pruner's where it does not train them.
        Masks are sampled once and applied once; autodiff through both gives the mask gradients.
        `words` (static) is what `words_to_pack` returned for the batch: then nothing is computed
        for padding by models that have `decode_packed`. The loss is the same, but for scheduled
        sampling, which needs 0 there.
    """

    def loss_fn(
        trained: PyTree,
        masks: PyTree,
        batch: Batch,
        step: jax.Array,
        rng: jax.Array,
        words: int = 0,
    ):
        masks = trained.get("masks", masks)
        mask_rng, dropout_rng = jax.random.split(rng)
        params = pruner.apply(trained["params"], pruner.sample(masks, mask_rng))
        if words and hasattr(model, "decode_packed"):
            forward = functools.partial(_packed, model, {"params": params}, words=words)
            answers = _sharded(forward, batch, dropout_rng, shards)
            caption_loss = losses.cross_entropy(*answers, label_smoothing)
        else:
            rngs, options = {"dropout": dropout_rng}, {}
            if sample_prob is not None:
                rngs["sampling"] = jax.random.fold_in(dropout_rng, 1)
                options["sample_prob"] = sample_prob(step)
            log_probs = model.apply(
                {"params": params}, batch.regions, batch.tokens, train=True, rngs=rngs, **options
            )
            caption_loss = losses.caption_loss(log_probs, batch, label_smoothing)
        penalty, metrics = pruner.penalty(masks, step)
        metrics = {"caption_loss": caption_loss, "sparsity_loss": penalty, **metrics}
        return caption_loss + penalty, metrics

    return loss_fn


def _packed(model: nn.Module, variables: PyTree, batch: Batch, rng: jax.Array, words: int):
    """Log-probs `[N, V]` of a batch's N words, the targets `[N]`, and which are real `[N]`.

    The last token of a caption predicts nothing, so that it is no input either.
    """
    inputs, counted = batch.tokens[..., :-1], batch.token_mask[..., 1:]
    context = model.apply(
        variables, batch.regions, train=True, method="encode", rngs={"dropout": rng}
    )
    log_probs, places = model.apply(
        variables, context, inputs, counted, words, train=True,
        method="decode_packed", rngs={"dropout": jax.random.fold_in(rng, 1)},
    )  # fmt: skip
    following = batch.tokens[..., 1:].reshape(-1)
    targets = jnp.take(following, places, mode="fill", fill_value=0)
    return log_probs, targets, places < following.size


def _sharded(forward: Callable, batch: Batch, rng: jax.Array, shards: int) -> tuple:
    """Map `forward` over the shards of a batch, each on the device that holds it."""
    if shards == 1:
        return forward(batch, rng)
    parts = jax.tree.map(lambda leaf: leaf.reshape(shards, -1, *leaf.shape[1:]), batch)
    return jax.vmap(forward)(parts, jax.random.split(rng, shards))


def make_train_step(
    model: nn.Module,
    pruner: Any,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    label_smoothing: float = 0.0,
    sample_prob: Callable[[jax.Array], jax.Array] | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Compile the training step; the state is donated, the batch is split over the mesh.

    Arguments are those of `make_loss`.

    Returns:
        `step(state, batches, words=0) -> (state, metrics)`, where leaves of `batches` are
        `[N, B, ...]`: N steps are taken in one call, and metrics are the means over them. `words`
        (static, by position) is what `words_to_pack` returned for the batches.
    """
    loss_fn = make_loss(model, pruner, label_smoothing, mesh.size, sample_prob)

    def one(state: TrainState, batch: Batch, words: int) -> tuple[TrainState, Metrics]:
        step_rng, update_rng = jax.random.split(jax.random.fold_in(state.rng, state.step))
        trained = trainable(state.params, state.prune.masks, pruner.trains_masks)
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, metrics), grads = grad_fn(
            trained, state.prune.masks, batch, state.step, step_rng, words
        )
        metrics = {"loss": loss, **metrics}
        return apply_gradients(state, trained, grads, tx, pruner, update_rng, metrics)

    def many(state: TrainState, batches: Batch, words: int = 0) -> tuple[TrainState, Metrics]:
        if batches.index.shape[0] == 1:  # spares the compiler a loop
            return one(state, jax.tree.map(lambda leaf: leaf[0], batches), words)
        state, metrics = jax.lax.scan(functools.partial(one, words=words), state, batches)
        return state, jax.tree.map(jnp.mean, metrics)

    replicated = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec(None, "data"))
    return jax.jit(
        many,
        static_argnums=2,
        in_shardings=(replicated, split),
        out_shardings=replicated,
        donate_argnums=0,
    )


def apply_gradients(
    state: TrainState,
    trained: PyTree,
    grads: PyTree,
    tx: optax.GradientTransformation,
    pruner: Any,
    rng: jax.Array,
    metrics: Metrics,
) -> tuple[TrainState, Metrics]:
    """Update weights and masks; the end of every training step.

    Args:
        state: before the step.
        trained: the optimizer's tree (`state.trainable`).
        grads: gradients in its form.
        tx: the optimizer.
        pruner: recomputes its masks where it is due.
        rng: the pruner's, for this step.
        metrics: of the step.

    Returns:
        The state after the step, and the metrics with `grad_norm` among them.
    """
    kept = {**grads, "params": pruner.gradients(grads["params"], state.prune.masks)}
    updates, opt_state = tx.update(kept, state.opt_state, trained)
    trained = optax.apply_updates(trained, updates)
    step = state.step + jnp.ones((), jnp.int32)
    prune = state.prune.replace(masks=trained.get("masks", state.prune.masks))
    prune = pruner.update(prune, trained["params"], grads["params"], step, rng)
    params, opt_state = pruner.settle(trained["params"], opt_state, prune.masks)
    metrics = {"grad_norm": optax.tree.norm(kept["params"]), **metrics}
    return TrainState(step, params, prune, opt_state, state.rng), metrics


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
