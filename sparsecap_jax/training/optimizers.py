"""Optimizers and learning-rate schedules of the PyTorch reference, as optax transformations.

The trained tree is `{"params": ...}`, or `{"params": ..., "masks": ...}` where masks are trained;
optimizer state has the same two entries.
"""

import dataclasses
import math
from functools import partial
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning.step import by_entry
from sparsecap_jax.settings import Range, build

Rate = Float[Array, ""]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Section `optimizer` of a config.

    Attributes:
        name: `adam`, `adamw`, `sgd`, `sgdm` (momentum), `sgdmom` (Nesterov momentum), `rmsprop`
            or `adagrad`, each with PyTorch's arithmetic.
        learning_rate: initial rate; unused by the noam schedule.
        schedule: `constant`, `cosine` (to `learning_rate_min` over the whole training), `step`
            (by epochs) or `noam`.
        learning_rate_min: where cosine ends.
        alpha: Adam's first beta, momentum of sgdm and sgdmom, decay of rmsprop.
        beta: Adam's second beta; None: 0.98 under noam, else 0.999.
        epsilon: of adam, adamw and rmsprop, added to the root; None: 1e-9 under noam, else 1e-8.
        weight_decay: L2 added to the gradient as in PyTorch; decoupled for adamw.
        clip: `value` (each entry, as the reference does), `norm` (of all weights together) or
            `none`. Trained masks are clipped in the same way, their norm apart.
        clip_at: the bound of `clip`.
        decay_start: epoch after which the step schedule decays; -1 never.
        decay_every: epochs between decays.
        decay_rate: factor of each decay.
        noam_factor: factor of the noam schedule.
        noam_warmup: steps over which noam rises.
        noam_size: the width that noam divides by the root of; None: the model's `d_model`, or 512
            where it has none.
        mask_learning_rate: constant rate of the masks' Adam.
        mask_epsilon: epsilon of the masks' Adam.
    """

    name: Literal["adam", "adamw", "sgd", "sgdm", "sgdmom", "rmsprop", "adagrad"] = "adam"
    learning_rate: Annotated[float, Range(0)] = 5e-4
    schedule: Literal["constant", "cosine", "step", "noam"] = "cosine"
    learning_rate_min: Annotated[float, Range(0)] = 1e-5
    alpha: Annotated[float, Range(0, 1, open_high=True)] = 0.9
    beta: Annotated[float | None, Range(0, 1, open_high=True)] = None
    epsilon: Annotated[float | None, Range(0)] = None
    weight_decay: Annotated[float, Range(0)] = 0.0
    clip: Literal["value", "norm", "none"] = "value"
    clip_at: Annotated[float, Range(0, open_low=True)] = 0.1
    decay_start: Annotated[int, Range(-1)] = 0
    decay_every: Annotated[int, Range(1)] = 3
    decay_rate: Annotated[float, Range(0)] = 0.8
    noam_factor: Annotated[float, Range(0, open_low=True)] = 1.0
    noam_warmup: Annotated[int, Range(1)] = 10000
    noam_size: Annotated[int | None, Range(1)] = None
    mask_learning_rate: Annotated[float, Range(0)] = 100.0
    mask_epsilon: Annotated[float, Range(0)] = 1e-2

    def __post_init__(self):
        if self.schedule == "cosine" and self.learning_rate_min > self.learning_rate:
            raise ConfigError(
                f"optimizer.learning_rate_min is {self.learning_rate_min}, above "
                f"optimizer.learning_rate {self.learning_rate}"
            )

    @property
    def betas(self) -> tuple[float, float]:
        """Both betas, the default worked out."""
        default = 0.98 if self.schedule == "noam" else 0.999
        return self.alpha, default if self.beta is None else self.beta

    @property
    def root_epsilon(self) -> float:
        """Epsilon, the default worked out."""
        default = 1e-9 if self.schedule == "noam" else 1e-8
        return default if self.epsilon is None else self.epsilon


def parse(config: Any) -> OptimizerConfig:
    """Read the section `optimizer`, see `settings.build`; pass an `OptimizerConfig` through."""
    is_read = isinstance(config, OptimizerConfig)
    return config if is_read else build(OptimizerConfig, config, "optimizer")


def make_schedule(
    config: Any, total_steps: int, steps_per_epoch: int | None = None, width: int | None = None
) -> optax.Schedule:
    """Learning rate of the weights as a function of the step.

        cosine  min + (rate - min) * (1 + cos(pi * min(1, n / total))) / 2
        noam    factor * width^-0.5 * min(n^-0.5, n * warmup^-1.5)
        step    rate * decay_rate^((epoch - start) // every)   where epoch > start >= 0

    with n = step + 1 and epoch = step // steps_per_epoch.

    Args:
        config: `OptimizerConfig`, or the mapping or ConfigDict it is made from.
        total_steps: length of training in optimizer steps.
        steps_per_epoch: length of an epoch; the step schedule needs it.
        width: of the model, for the noam schedule; None: 512.

    Returns:
        A function from the number of finished steps (int, or int32 scalar) to a float32 scalar.

    Raises:
        ConfigError: a bad config, or a step schedule without `steps_per_epoch`.

    References:
        utils/optim.py of the PyTorch reference; noam: Vaswani et al. (2017), equation 3.
    """
    config = parse(config)
    if total_steps < 1:
        raise ConfigError(f"optimizer: total_steps is {total_steps}; expected at least 1")
    if config.schedule == "step":
        if not steps_per_epoch:
            raise ConfigError("optimizer.schedule is 'step', which needs steps_per_epoch")
        return partial(_staircase, config, -(-total_steps // steps_per_epoch), steps_per_epoch)
    if config.schedule == "cosine":
        return partial(_cosine, config, total_steps)
    if config.schedule == "noam":
        return partial(_noam, config, config.noam_size or width or 512)
    return lambda step: jnp.float32(config.learning_rate)


def _cosine(config: OptimizerConfig, total_steps: int, step: Any) -> Rate:
    low, high = config.learning_rate_min, config.learning_rate
    # (1 + cos x) / 2 = sin^2((pi - x) / 2), which keeps its digits where x comes near pi.
    left = jnp.maximum(0, total_steps - 1 - jnp.asarray(step, jnp.int32))
    angle = left.astype(jnp.float32) * jnp.float32(math.pi / 2 / total_steps)
    return jnp.float32(high - low) * jnp.square(jnp.sin(angle)) + jnp.float32(low)


def _noam(config: OptimizerConfig, width: int, step: Any) -> Rate:
    n = jnp.asarray(step, jnp.float32) + jnp.float32(1.0)
    rising = n * jnp.float32(config.noam_warmup**-1.5)
    factor = jnp.float32(config.noam_factor * width**-0.5)
    return factor * jnp.minimum(1.0 / jnp.sqrt(n), rising)


def _staircase(config: OptimizerConfig, epochs: int, steps_per_epoch: int, step: Any) -> Rate:
    since = np.maximum(np.arange(epochs + 1) - config.decay_start, 0) * (config.decay_start >= 0)
    # A table, since float32 powers are not accurate to the last digits.
    rates = config.learning_rate * config.decay_rate ** (since // config.decay_every)
    epoch = jnp.asarray(step, jnp.int32) // steps_per_epoch
    return jnp.asarray(rates, jnp.float32)[jnp.minimum(epoch, epochs)]


def make_optimizer(
    config: Any,
    total_steps: int,
    steps_per_epoch: int | None = None,
    trains_masks: bool = False,
    width: int | None = None,
) -> optax.GradientTransformation:
    """Optimizer over `{"params": ...}`, and `"masks"` where they are trained.

    Gradients are clipped, then each group takes its own step: the weights by the configured
    optimizer and schedule, mask logits by Adam at a constant rate with the weights' betas, a large
    epsilon and no weight decay.

    The arguments are those of `make_schedule`, and `trains_masks`, whether the tree has an entry
    `masks` (`pruner.trains_masks`). The state is `{"params": ..., "masks": ...}` of optax states.

    Raises:
        ConfigError: see `make_schedule`.
    """
    config = parse(config)
    schedule = make_schedule(config, total_steps, steps_per_epoch, width)
    clips = {"value": optax.clip, "norm": optax.clip_by_global_norm}
    clip = clips[config.clip](config.clip_at) if config.clip in clips else optax.identity()
    rate = optax.scale_by_learning_rate(schedule)
    groups = {"params": optax.chain(clip, *_direction(config), rate)}
    if trains_masks:
        adam = optax.scale_by_adam(*config.betas, config.mask_epsilon)
        rate = optax.scale_by_learning_rate(config.mask_learning_rate)
        groups["masks"] = optax.chain(clip, adam, rate)
    return by_entry(groups)


def _direction(config: OptimizerConfig) -> list[optax.GradientTransformation]:
    """Return the transformations between clipping and the learning rate."""
    alpha, _ = config.betas
    decay = [optax.add_decayed_weights(config.weight_decay)] if config.weight_decay else []
    adam = optax.scale_by_adam(*config.betas, config.root_epsilon)
    if config.name == "adamw":
        return [adam, *decay]
    rules = {
        "adam": lambda: adam,
        "sgd": optax.identity,
        "sgdm": lambda: optax.trace(decay=alpha),
        "sgdmom": lambda: optax.trace(decay=alpha, nesterov=True),
        "rmsprop": lambda: optax.scale_by_rms(alpha, config.root_epsilon, eps_in_sqrt=False),
        # PyTorch adds 1e-10 to the root, which float32 rounds away.
        "adagrad": lambda: optax.scale_by_rss(initial_accumulator_value=0.0, eps=0.0),
    }
    return [*decay, rules[config.name]()]
