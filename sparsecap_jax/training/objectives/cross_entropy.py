"""Cross-entropy with teacher forcing, computed for real words alone where the model can."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array

from sparsecap_jax.models import packs_words
from sparsecap_jax.pruning.step import Metrics
from sparsecap_jax.training import losses
from sparsecap_jax.training.objectives.base import Objective
from sparsecap_jax.training.shard_rngs import shard_keys
from sparsecap_jax.types import Batch, PyTree


def words_to_pack(token_mask: np.ndarray, shards: int = 1, least: int = 64) -> int:
    """Choose the number of slots that the packed training loss needs for a batch.

    Few sizes occur, so that few steps are compiled: multiples of a sixteenth of all tokens.

    Args:
        token_mask: bool `[..., B, S, T]`; of several batches the fullest decides.
        shards: parts that B is split into, each packed apart.
        least: smallest distance between sizes: compiling for fewer words does not pay.

    Returns:
        Slots per shard, at most `B / shards * S * (T - 1)`.
    """
    counted = np.asarray(token_mask)[..., 1:]
    images, captions, length = counted.shape[-3:]
    most = images // shards * captions * length
    counts = counted.reshape(-1, shards, most).sum(axis=-1)
    unit = max(least, -(-most // 16))
    return min(most, unit * max(1, -(-int(counts.max()) // unit)))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CrossEntropy(Objective):
    """Cross-entropy of the captions, label-smoothed by `task.label_smoothing`.

    Words are packed within the shard of a device; dropout and loss are those of one device, see
    `shard_keys`. Scheduled sampling needs whole captions, so that nothing is packed from its first
    step on.
    """

    def inputs(self, batches: Batch, step: int) -> tuple[Batch, int]:
        """Return the batches and the number of words to pack, 0 for none."""
        first = self.task.sampling.first_step(self.task.steps_per_epoch)
        task = self.task
        packs = first is None or step + len(batches.index) // task.parts <= first
        if not packs:
            return batches, 0
        return batches, task.largest(words_to_pack(batches.token_mask, task.local_shards))

    def loss(
        self, params: PyTree, inputs: Any, step: Any, rng: Array, static: Any, resources: PyTree
    ) -> tuple[Array, Metrics]:
        """Return the mean loss of a word."""
        task, batch = self.task, inputs
        if static and packs_words(task.model):
            forward = functools.partial(_packed, task.model, {"params": params}, words=static)
            keys = rng, jax.random.fold_in(rng, 1)
            if task.shards > 1:  # each on the device that holds it
                batch = jax.tree.map(lambda x: x.reshape(task.shards, -1, *x.shape[1:]), batch)
                words = jnp.sum(batch.token_mask[..., 1:], axis=(1, 2, 3), dtype=jnp.int32)
                of_images = shard_keys(keys[0], task.shards)
                keys = of_images, shard_keys(keys[1], task.shards, words, static)
                forward = jax.vmap(forward)
            log_probs, targets, real = forward(batch, keys)
            loss = losses.cross_entropy(log_probs, targets, real, task.label_smoothing)
            return loss, {"caption_loss": loss}
        rngs, options = {"dropout": rng}, dict[str, Any]()
        if task.sampling.first_step(task.steps_per_epoch) is not None:
            rngs["sampling"] = jax.random.fold_in(rng, 1)
            options["sample_prob"] = task.sampling.schedule(task.steps_per_epoch)(step)
        predicted: Any = task.model.apply(
            {"params": params}, batch.regions, batch.tokens, train=True, rngs=rngs, **options
        )
        loss = losses.caption_loss(predicted, batch, task.label_smoothing)
        return loss, {"caption_loss": loss}


def _packed(
    model: nn.Module, variables: PyTree, batch: Batch, rngs: tuple[Array, Array], words: int
) -> tuple[Array, Array, Array]:
    """Return log-probs `[N, V]` of a batch's N words, targets `[N]`, and which are real `[N]`.

    The last token of a caption predicts nothing, so that it is no input either. `rngs` are the keys
    of dropout in encoder and decoder.
    """
    inputs, counted = batch.tokens[..., :-1], batch.token_mask[..., 1:]
    result: Any
    context = model.apply(
        variables, batch.regions, train=True, method="encode", rngs={"dropout": rngs[0]}
    )
    result = model.apply(
        variables, context, inputs, counted, words, train=True,
        method="decode_packed", rngs={"dropout": rngs[1]},
    )  # fmt: skip
    log_probs, places = result
    following = batch.tokens[..., 1:].reshape(-1)
    targets = jnp.take(following, places, mode="fill", fill_value=0)
    return log_probs, targets, places < following.size
