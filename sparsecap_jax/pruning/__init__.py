"""Pruning for any JAX model: masks are a pytree beside the parameters, pruners pure functions.

See docs/pruning.md. A new method is one file with a subclass of `Pruner` and one line in
`PRUNERS`.
"""

from functools import partial
from typing import Any

from sparsecap_jax.pruning.base import NoPruner, Pruner, PruneState
from sparsecap_jax.pruning.frozen import MaskFreeze
from sparsecap_jax.pruning.lottery import LotteryMagnitude, LotteryMaskFreeze
from sparsecap_jax.pruning.magnitude import GradualMagnitude, OneShotMagnitude
from sparsecap_jax.pruning.masks import (
    Sparsity,
    apply_masks,
    apply_straight_through,
    check_binary,
    check_fit,
    finalize,
    overall_sparsity,
    pack,
    sparsity,
    unpack,
)
from sparsecap_jax.pruning.scored import Magnitude, Random, Saliency
from sparsecap_jax.pruning.snip import Snip
from sparsecap_jax.pruning.sparse_training import SET, RigL, StaticSparse
from sparsecap_jax.pruning.step import SparseStep, TrainState, sparse_step
from sparsecap_jax.pruning.straight_through import MagnitudeSTE
from sparsecap_jax.pruning.supermask import Supermask
from sparsecap_jax.settings import Registry, build, defaults_of

# Keywords given here belong to the name and cannot be set by a config.
PRUNERS = Registry(
    "pruner.name",
    {
        "none": NoPruner,
        "supermask": Supermask,
        "mag_blind": partial(OneShotMagnitude, criterion="blind"),
        "mag_uniform": partial(OneShotMagnitude, criterion="uniform"),
        "mag_dist": partial(OneShotMagnitude, criterion="dist"),
        "mag_grad_blind": partial(GradualMagnitude, criterion="blind"),
        "mag_grad_uniform": partial(GradualMagnitude, criterion="uniform"),
        "mag_grad_dist": partial(GradualMagnitude, criterion="dist"),
        "lottery_mag_blind": partial(LotteryMagnitude, criterion="blind"),
        "lottery_mag_uniform": partial(LotteryMagnitude, criterion="uniform"),
        "lottery_mag_dist": partial(LotteryMagnitude, criterion="dist"),
        "lottery_mask_freeze": LotteryMaskFreeze,
        "mask_freeze": MaskFreeze,
        "snip": Snip,
        # Those of jaxpruner, by its names.
        "magnitude": Magnitude,
        "global_magnitude": partial(Magnitude, distribution="global", normalize=True),
        "saliency": Saliency,
        "global_saliency": partial(Saliency, distribution="global", normalize=True),
        "random": Random,
        "magnitude_ste": MagnitudeSTE,
        "static_sparse": StaticSparse,
        "set": SET,
        "rigl": RigL,
    },
)


# What the training loop gives, not the config section.
_GIVEN = ("name", "total_steps", "steps_per_epoch")


def pruner_fields(name: str) -> dict[str, Any]:
    """Return the config fields of pruner `name` with their defaults.

    Raises:
        ConfigError: there is no such pruner.
    """
    return defaults_of(PRUNERS[name], *_GIVEN)


def make_pruner(config: Any, total_steps: int, steps_per_epoch: int | None = None) -> Pruner:
    """Build the pruner that a config section describes.

    Args:
        config: mapping or ConfigDict with `name`, a key of `PRUNERS`, and fields of its class.
        total_steps: length of training in optimizer steps.
        steps_per_epoch: length of an epoch in optimizer steps.

    Returns:
        The pruner, a frozen (hashable) dataclass.

    Raises:
        ConfigError: an unknown name or key, or a value of the wrong type or out of range.
    """
    options = dict(config.items())
    name = options.pop("name", None)
    return build(
        PRUNERS[name],
        options,
        "pruner",
        name=name,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
    )


__all__ = [
    "PRUNERS",
    "PruneState",
    "Pruner",
    "SparseStep",
    "Sparsity",
    "TrainState",
    "apply_masks",
    "apply_straight_through",
    "check_binary",
    "check_fit",
    "finalize",
    "make_pruner",
    "overall_sparsity",
    "pack",
    "pruner_fields",
    "sparse_step",
    "sparsity",
    "unpack",
]
