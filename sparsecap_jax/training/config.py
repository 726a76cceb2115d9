"""Section `train` of a config: the length of training, its logs, and scheduled sampling."""

import dataclasses
import re
from collections.abc import Callable
from typing import Annotated, Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.settings import MAY_CHANGE, Range
from sparsecap_jax.types import ArrayLike


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

        def probability(step):
            epochs = jnp.asarray(step, jnp.int32) // steps_per_epoch - self.start
            rises = jnp.maximum(epochs // self.increase_every, 0) * (self.start >= 0)
            return jnp.minimum(self.max_prob, self.increase_prob * rises.astype(jnp.float32))

        return probability

    def first_step(self, steps_per_epoch: int) -> int | None:
        """The first step with a probability above 0; None: there is none."""
        if self.start < 0 or not self.increase_prob or not self.max_prob:
            return None
        return (self.start + self.increase_every) * steps_per_epoch


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Section `train` of a config.

    Attributes:
        epochs: length of training in passes over the images.
        steps: length of training in steps, instead of `epochs` where it is above 0; to set
            `epochs` is then an error.
        label_smoothing: probability that is spread over all tokens.
        scheduled_sampling_start: epoch after which recurrent models are fed their own words; -1:
            never.
        scheduled_sampling_increase_every: epochs between rises of their probability.
        scheduled_sampling_increase_prob: height of a rise.
        scheduled_sampling_max_prob: the highest probability.
        log_every: steps between lines of the log.
        eval_every: steps between validations, each with a checkpoint; 0: an epoch.
        accumulate: batches of `data.batch_size` images that one step computes, one after the other,
            before it updates the weights: the update of a batch so many times as large.
        steps_per_call: steps compiled into one call; more than one helps small models.
        skip_nonfinite: number of steps whose loss, gradients or weights may be not finite; such a
            step leaves the state as it was, and one more stops training. 0 needs the least memory.
        packed_optimizer: whether the optimizer keeps state of the kept weights alone, and masks are
            stored as bool: the same training with less memory, for pruners whose masks stay the
            same (`mask_freeze`, and those that prune before training).
        devices: accelerators that the batch is spread over; 0: all.
        init_from: run directory, or captioner of the package, whose weights training starts from;
            "": none.
        init_ignore: regular expressions of weights that may be missing, extra or of another shape
            there.
    """

    epochs: Annotated[int, Range(0), MAY_CHANGE] = 15
    steps: Annotated[int, Range(0, 2**31 - 1), MAY_CHANGE] = 0
    label_smoothing: Annotated[float, Range(0, 1, open_high=True)] = 0.0
    scheduled_sampling_start: Annotated[int, Range(-1)] = ScheduledSampling.start
    scheduled_sampling_increase_every: Annotated[int, Range(1)] = ScheduledSampling.increase_every
    scheduled_sampling_increase_prob: Annotated[float, Range(0, 1)] = (
        ScheduledSampling.increase_prob
    )
    scheduled_sampling_max_prob: Annotated[float, Range(0, 1)] = ScheduledSampling.max_prob
    log_every: Annotated[int, Range(1), MAY_CHANGE] = 25
    eval_every: Annotated[int, Range(0), MAY_CHANGE] = 0
    accumulate: Annotated[int, Range(1, 10_000)] = 1
    steps_per_call: Annotated[int, Range(1, 10_000)] = 1
    skip_nonfinite: Annotated[int, Range(0), MAY_CHANGE] = 0
    packed_optimizer: bool = False
    devices: Annotated[int, Range(0, 100_000)] = 0
    init_from: str = ""
    init_ignore: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.steps and not self.epochs:
            raise ConfigError("train: both steps and epochs are 0; expected one of them > 0")
        for pattern in self.init_ignore:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"train.init_ignore: {pattern!r} is no regex: {error}") from error


def scheduled_sampling(section: Any, model: Any) -> ScheduledSampling:
    """Read the fields `scheduled_sampling_*` of `config.train` for a model, or its class.

    Raises:
        ConfigError: sampling for a model that is not recurrent.
    """
    names = (field.name for field in dataclasses.fields(ScheduledSampling))
    sampling = ScheduledSampling(*(getattr(section, f"scheduled_sampling_{n}") for n in names))
    if sampling.start >= 0 and not getattr(model, "samples_inputs", False):
        raise ConfigError(
            f"config.train.scheduled_sampling_start is {sampling.start}; expected -1 for a model "
            "that is not recurrent (up_down and soft_attention are)"
        )
    return sampling
