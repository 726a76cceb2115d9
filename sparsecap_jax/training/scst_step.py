"""The self-critical training step: sample, reward, policy gradient, update, in one compiled call.

Rennie et al., "Self-critical Sequence Training for Image Captioning", CVPR 2017, arXiv 1612.00563.
Search and gradient see one policy: the same masks, no dropout, and images encoded once for both.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from sparsecap_jax.decoding import Decoded, DecodeOptions, decode_encoded
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning.masks import apply_masks, overall_sparsity
from sparsecap_jax.scst.config import ScstConfig
from sparsecap_jax.scst.ngrams import own_counts
from sparsecap_jax.scst.rewards import Rewards, leave_one_out
from sparsecap_jax.training.compilation import compiled_ahead
from sparsecap_jax.training.policy_gradient import Partition, PolicyGradient, Samples
from sparsecap_jax.training.state import TrainState, trainable
from sparsecap_jax.training.steps import Metrics, apply_gradients
from sparsecap_jax.types import Batch, PyTree, Regions

Reward = Callable[[Decoded], Float[Array, "B K"]]


def make_scst_step(
    model: nn.Module,
    pruner: Any,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    rewards: Rewards,
    config: ScstConfig,
    options: DecodeOptions,
) -> Callable[[TrainState, Batch, PyTree], tuple[TrainState, Metrics]]:
    """Compile the step; the state is donated, the batch is split over the mesh.

    Args:
        model: the captioner, with `decode_packed`.
        pruner: how masks become weights.
        tx: the optimizer.
        mesh: devices, axis `data`.
        rewards: of captions.
        config: the section `scst`.
        options: special ids and the longest caption; how to search follows from `config`.

    Returns:
        `step(state, batches, references) -> (state, metrics)` with leaves `[N, B, ...]` as in
        `steps.make_train_step`; `references` is `rewards.gather(batches.index)`. Nothing moves
        between host and device, but for subword tokenizers, which are scored on the host.

    Raises:
        ConfigError: the model cannot compute packed words.
    """
    if not hasattr(model, "decode_packed"):
        raise ConfigError(f"model {type(model).__name__}: scst needs a model with decode_packed")
    loss_fn = SelfCritical(model, config, options)

    def one(state: TrainState, batch: Batch, references: PyTree, resources: PyTree):
        step_rng, update_rng = jax.random.split(jax.random.fold_in(state.rng, state.step))
        mask_rng, sample_rng = jax.random.split(step_rng)
        masks = state.prune.masks
        trained = trainable(state.params, masks, pruner.trains_masks)

        def pruned(trained):
            binary = pruner.sample(trained.get("masks", masks), mask_rng)
            return pruner.apply(trained["params"], binary)

        def penalty(trained):
            return pruner.penalty(trained.get("masks", masks), state.step)

        def reward(found: Decoded) -> Float[Array, "B K"]:
            return rewards(resources, references, found.tokens, found.lengths)

        binary = pruner.binarize(masks)
        evaluated = apply_masks(state.params, binary) if pruner.trains_masks else None
        params, pull = jax.vjp(pruned, trained)
        loss, grads, metrics = loss_fn(params, evaluated, batch.regions, reward, sample_rng)
        (cost, more), cost_grads = jax.value_and_grad(penalty, has_aux=True)(trained)
        grads = jax.tree.map(jnp.add, *pull(grads), cost_grads)
        metrics |= {"caption_loss": loss, "sparsity_loss": cost, "loss": loss + cost}
        if jax.tree.leaves(binary):
            metrics["sparsity"] = overall_sparsity(binary)
        metrics |= more
        return apply_gradients(state, trained, grads, tx, pruner, update_rng, metrics)

    def many(state: TrainState, batches: Batch, references: PyTree, resources: PyTree):
        if batches.index.shape[0] == 1:  # spares the compiler a loop
            first = jax.tree.map(lambda leaf: leaf[0], (batches, references))
            return one(state, *first, resources)
        state, metrics = jax.lax.scan(
            lambda state, given: one(state, *given, resources), state, (batches, references)
        )
        return state, jax.tree.map(jnp.mean, metrics)

    replicated = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec(None, "data"))
    compiled = compiled_ahead(
        jax.jit(
            many,
            in_shardings=(replicated, split, split, replicated),
            out_shardings=replicated,
            donate_argnums=0,
        )
    )
    resources = jax.device_put(rewards.resources, replicated)
    return lambda state, batches, references: compiled(state, batches, references, resources)


@dataclasses.dataclass(frozen=True)
class SelfCritical:
    """Samples captions, rewards them, and differentiates the loss.

    Attributes:
        model: the captioner.
        config: the section `scst`.
        options: special ids and the longest caption.
    """

    model: nn.Module
    config: ScstConfig
    options: DecodeOptions

    def __call__(
        self, params: PyTree, evaluated: PyTree | None, regions: Regions, reward: Reward, rng: Array
    ) -> tuple[Float[Array, ""], PyTree, Metrics]:
        """Return the loss, its gradient by `params`, and metrics.

        Args:
            params: weights, masks applied.
            evaluated: those of the greedy baseline, in evaluation mode; None: `params`.
            regions: of the images.
            reward: of captions.
            rng: of the samples.
        """
        shapes = jax.eval_shape(self._encode, params, regions)
        partition = Partition.of(shapes)
        floats, pull, others = jax.vjp(
            lambda params: partition.split(self._encode(params, regions)), params, has_aux=True
        )
        context = partition.merge(floats, others)
        found = decode_encoded(self.model, params, context, self._search(), rng)
        rewards = reward(found)
        if self.config.baseline == "sample":
            baseline = leave_one_out(rewards)
        elif evaluated is None:
            baseline = self._greedy(params, context, reward)
        else:
            baseline = self._greedy(evaluated, self._encode(evaluated, regions), reward)
        places = jnp.arange(self.options.max_length, dtype=jnp.int32)
        inside = places < found.lengths[..., None]
        advantages = rewards - baseline
        samples = Samples(found.tokens, inside, found.log_probs, advantages)
        gradient = PolicyGradient(
            self.model,
            partition,
            self.options.bos_id,
            self.config.micro_batch,
            self.config.length_buckets,
        )
        loss, (grads, context_grads), gap = gradient(params, floats, others, samples)
        grads = jax.tree.map(jnp.add, grads, *pull(context_grads))
        metrics = {
            "reward": jnp.mean(rewards),
            "baseline": jnp.mean(baseline),
            "advantage_std": jnp.std(advantages),
            "log_prob_gap": gap,
            **sample_metrics(found),
        }
        return loss, grads, metrics

    def _encode(self, params: PyTree, regions: Regions) -> PyTree:
        return self.model.apply({"params": params}, regions, method="encode")

    def _search(self) -> DecodeOptions:
        count = self.config.num_samples
        if self.config.sample == "beam":
            return dataclasses.replace(self.options, method="beam", beam_size=count)
        return dataclasses.replace(self.options, method="sample", num_samples=count)

    def _greedy(self, params: PyTree, context: PyTree, reward: Reward) -> Float[Array, "B 1"]:
        options = dataclasses.replace(self.options, method="greedy")
        return reward(decode_encoded(self.model, params, context, options))


def sample_metrics(found: Decoded) -> Metrics:
    """What sampled captions are like: length, entropy, repetition.

    `length` counts tokens, EOS included. `entropy` is the mean of -log p over them, an unbiased
    estimate of the policy's entropy per token where samples are random. `repeated_4grams` is the
    share of 4-grams of tokens that have occurred in their caption before.
    """
    words = jnp.maximum(jnp.sum(found.lengths), 1).astype(jnp.float32)
    own = own_counts(jnp, found.tokens, found.lengths, jnp.float32)[..., 3]
    there = jnp.maximum(jnp.sum(own > 0), 1).astype(jnp.float32)
    again = jnp.sum(jnp.where(own > 0, 1 - 1 / jnp.maximum(own, 1), 0))
    return {
        "length": jnp.mean(found.lengths.astype(jnp.float32)),
        "entropy": -jnp.sum(found.log_probs) / words,
        "repeated_4grams": again / there,
    }
