"""Scheduled sampling: recurrent models fed with their own words in training."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.types import ArrayLike

PREFIX = "scheduled_sampling_"


@dataclasses.dataclass(frozen=True)
class ScheduledSampling:
    """Probability with which a token is replaced: a staircase over epochs.

        p(epoch) = min(max_prob, increase_prob * floor((epoch - start) / increase_every))

    with epochs counted from 0, and 0 up to `start`. The reference's model has the probability
    (`ss_prob`) but nothing sets it; the schedule is that of the code its model derives from
    (github ruotianluo/self-critical.pytorch).

    Attributes:
        start: epoch after which it begins; negative: never.
        increase_every: epochs from one step of the staircase to the next.
        increase_prob: height of a step.
        max_prob: the highest probability.
    """

    start: int = -1
    increase_every: int = 5
    increase_prob: float = 0.05
    max_prob: float = 0.25

    def schedule(self, steps_per_epoch: int) -> Callable[[ArrayLike | int], Float[Array, ""]]:
        """The probability as a function of the step (from 0), which may be traced."""

        def probability(step: ArrayLike | int) -> Float[Array, ""]:
            epochs = jnp.asarray(step, jnp.int32) // steps_per_epoch - self.start
            rises = jnp.maximum(epochs // self.increase_every, 0) * (self.start >= 0)
            return jnp.minimum(self.max_prob, self.increase_prob * rises.astype(jnp.float32))

        return probability

    def first_step(self, steps_per_epoch: int) -> int | None:
        """The first step with a probability above 0; None: there is none."""
        if self.start < 0 or not self.increase_prob or not self.max_prob:
            return None
        return (self.start + self.increase_every) * steps_per_epoch


def parse(section: Any, model: Any) -> ScheduledSampling:
    """Read the fields `scheduled_sampling_*` of `config.train` for a model, or its class.

    Raises:
        ConfigError: sampling for a model that is not recurrent.
    """
    names = (field.name for field in dataclasses.fields(ScheduledSampling))
    sampling = ScheduledSampling(*(getattr(section, PREFIX + name) for name in names))
    if sampling.start >= 0 and not getattr(model, "samples_inputs", False):
        raise ConfigError(
            f"config.train.{PREFIX}start is {sampling.start}; expected -1 for a model that is not "
            "recurrent (up_down and soft_attention are)"
        )
    return sampling
