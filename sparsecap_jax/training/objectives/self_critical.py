"""Self-critical training: sample captions, reward them, and follow the policy gradient.

Search and gradient see one policy: the same masks, no dropout, and images encoded once for both.

References:
    Rennie et al., "Self-critical sequence training for image captioning" (2017), arXiv 1612.00563.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sparsecap_jax.decoding import Decoded, DecodeOptions, decode_encoded
from sparsecap_jax.pruning.step import Metrics
from sparsecap_jax.scst.config import ScstConfig
from sparsecap_jax.scst.formulas import own_counts
from sparsecap_jax.scst.rewards import Rewards, leave_one_out
from sparsecap_jax.training.objectives.base import Objective
from sparsecap_jax.training.policy_gradient import (
    PolicyGradient,
    Samples,
    merge_floats,
    split_floats,
)
from sparsecap_jax.types import Batch, PyTree, Regions

Reward = Callable[[Decoded], Float[Array, "B K"]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SelfCritical(Objective):
    """Reward of sampled captions over a baseline, with its policy gradient.

    Nothing moves between host and device, except for subword tokenizers, whose captions are scored
    on the host.

    Attributes:
        config: settings, the config section `scst`.
        rewards: scores of captions against the references of the training images.
        options: special ids and the longest caption; the kind of search follows from `config`.
    """

    config: ScstConfig
    rewards: Rewards
    options: DecodeOptions

    needs_trained: ClassVar[str] = (
        "config.scst.start_epoch is 0, and self-critical training starts from a trained model"
    )

    @property
    def resources(self) -> PyTree:
        """Tables of the rewards: words and document frequencies."""
        return self.rewards.resources

    def inputs(self, batches: Batch, step: int) -> tuple[PyTree, None]:
        """Return the regions, and the references of the images."""
        return (batches.regions, self.rewards.gather(batches.index)), None

    def part_weight(self, inputs: PyTree, metrics: Metrics) -> Array:
        """Return the mean length of captions, of which each image has as many."""
        return metrics["length"]

    def __call__(
        self,
        params: PyTree,
        evaluated: PyTree | None,
        inputs: Any,
        step: Any,
        rng: Array,
        static: Any = None,
        resources: PyTree = (),
    ) -> tuple[Array, PyTree, Metrics]:
        """Return the loss, its gradient with respect to `params`, and metrics."""
        regions, references = inputs

        def reward(captions: Decoded) -> Float[Array, "B K"]:
            return self.rewards(resources, references, captions.tokens, captions.lengths)

        model, config = self.task.model, self.config
        floats, pull, others = jax.vjp(
            lambda params: split_floats(self._encode(params, regions)), params, has_aux=True
        )
        context = merge_floats(floats, others)
        count = config.num_samples
        if config.sample == "beam":
            search = dataclasses.replace(self.options, method="beam", beam_size=count)
        else:
            search = dataclasses.replace(self.options, method="sample", num_samples=count)
        captions = decode_encoded(model, params, context, search, rng)
        rewards = reward(captions)
        if config.baseline == "sample":
            baseline = leave_one_out(rewards)
        elif evaluated is None:
            baseline = self._greedy(params, context, reward)
        else:
            baseline = self._greedy(evaluated, self._encode(evaluated, regions), reward)
        places = jnp.arange(self.options.max_length, dtype=jnp.int32)
        inside = places < captions.lengths[..., None]
        advantages = rewards - baseline
        samples = Samples(captions.tokens, inside, captions.log_probs, advantages)
        bos, size, buckets = self.options.bos_id, config.micro_batch, config.length_buckets
        gradient = PolicyGradient(model, bos, size, buckets)
        loss, (grads, context_grads), gap = gradient(params, floats, others, samples)
        grads = jax.tree.map(jnp.add, grads, *pull(context_grads))
        metrics = {
            "caption_loss": loss,
            "reward": jnp.mean(rewards),
            "baseline": jnp.mean(baseline),
            "advantage_std": jnp.std(advantages),
            "log_prob_gap": gap,
            **sample_metrics(captions),
        }
        return loss, grads, metrics

    def _encode(self, params: PyTree, regions: Regions) -> PyTree:
        return self.task.model.apply({"params": params}, regions, method="encode")

    def _greedy(self, params: PyTree, context: PyTree, reward: Reward) -> Float[Array, "B 1"]:
        options = dataclasses.replace(self.options, method="greedy")
        return reward(decode_encoded(self.task.model, params, context, options))


def sample_metrics(captions: Decoded) -> Metrics:
    """Length, entropy and repetition of sampled captions.

    `length` counts tokens, EOS included. `entropy` is the mean of -log p over them, an unbiased
    estimate of the policy's entropy per token where samples are random. `repeated_4grams` is the
    share of 4-grams of tokens that have occurred in their caption before.
    """
    words = jnp.maximum(jnp.sum(captions.lengths), 1).astype(jnp.float32)
    counts = own_counts(jnp, captions.tokens, captions.lengths, jnp.float32)[..., 3]
    distinct = jnp.maximum(jnp.sum(counts > 0), 1).astype(jnp.float32)
    repeated = jnp.sum(jnp.where(counts > 0, 1 - 1 / jnp.maximum(counts, 1), 0))
    return {
        "length": jnp.mean(captions.lengths.astype(jnp.float32)),
        "entropy": -jnp.sum(captions.log_probs) / words,
        "repeated_4grams": repeated / distinct,
    }
