"""Section `train` of a config: the length of training, its logs and where it starts."""

import dataclasses
import re
from typing import Annotated

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.settings import MAY_CHANGE, Range
from sparsecap_jax.training.scheduled_sampling import ScheduledSampling


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Section `train` of a config.

    Attributes:
        epochs: length of training in passes over the images.
        steps: length of training in steps, instead of `epochs` where it is above 0.
        label_smoothing: probability that is spread over all tokens.
        scheduled_sampling_start: epoch after which recurrent models are fed their own words; -1:
            never.
        scheduled_sampling_increase_every: epochs between rises of their probability.
        scheduled_sampling_increase_prob: height of a rise.
        scheduled_sampling_max_prob: the highest probability.
        log_every: steps between lines of the log.
        eval_every: steps between validations, each with a checkpoint; 0: an epoch.
        steps_per_call: steps compiled into one call; more than one helps small models.
        devices: accelerators that the batch is spread over; 0: all.
        init_from: run directory whose weights training starts from; "": none.
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
    steps_per_call: Annotated[int, Range(1, 10_000)] = 1
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
