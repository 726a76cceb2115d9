"""Pruning for any JAX model: masks are a pytree along with the parameters, pruners pure functions.

See docs/pruning.md. A new method is a subclass of `Ranked` (or `Pruner`) and one line in `PRUNERS`.
"""

import inspect
from functools import partial
from typing import Any

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning.base import Pruner, PruneState
from sparsecap_jax.pruning.fixed import MaskFreeze, NoPruner
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
from sparsecap_jax.pruning.methods import (
    Magnitude,
    MagnitudeSTE,
    OneShotMagnitude,
    Random,
    Saliency,
)
from sparsecap_jax.pruning.paths import by_path
from sparsecap_jax.pruning.ranked import Ranked
from sparsecap_jax.pruning.sparse_training import Rewired, StaticSparse
from sparsecap_jax.pruning.step import SparseStep, TrainState, sparse_step
from sparsecap_jax.pruning.supermask import Supermask
from sparsecap_jax.settings import Registry, build, defaults_of

# Parts that a method may fix. What a `partial` is given belongs to the name: no config sets it.
_BLIND = {"distribution": "global", "standardize": False}
_UNIFORM = {"distribution": "uniform", "standardize": False}
_DIST = {"distribution": "global", "standardize": True}
_NO_EVENTS = {"initial_sparsity": 0.0, "start_step": None, "frequency": None, "events": None}

_one_shot = partial(OneShotMagnitude, rewinds=False, **_NO_EVENTS)
_lottery = partial(OneShotMagnitude, rewinds=True, **_NO_EVENTS)
_gradual = partial(Magnitude, when="polynomial", normalize=False)
_magnitude = partial(Magnitude, standardize=False)
_saliency = partial(Saliency, reference_signed=False)

PRUNERS: Registry[Any] = Registry(
    "pruner.name",
    {
        "none": NoPruner,
        "supermask": Supermask,
        "mag_blind": partial(_one_shot, **_BLIND),
        "mag_uniform": partial(_one_shot, **_UNIFORM),
        "mag_dist": partial(_one_shot, **_DIST),
        "mag_grad_blind": partial(_gradual, **_BLIND),
        "mag_grad_uniform": partial(_gradual, **_UNIFORM),
        "mag_grad_dist": partial(_gradual, **_DIST),
        "lottery_mag_blind": partial(_lottery, **_BLIND),
        "lottery_mag_uniform": partial(_lottery, **_UNIFORM),
        "lottery_mag_dist": partial(_lottery, **_DIST),
        "lottery_mask_freeze": partial(MaskFreeze, rewinds=True),
        "mask_freeze": partial(MaskFreeze, rewinds=False),
        "snip": partial(
            Saliency, when="before", distribution="global", normalize=False, **_NO_EVENTS
        ),
        # Those of jaxpruner, by its names.
        "magnitude": _magnitude,
        "global_magnitude": partial(_magnitude, distribution="global", normalize=True),
        "saliency": _saliency,
        "global_saliency": partial(_saliency, distribution="global", normalize=True),
        "random": Random,
        "magnitude_ste": MagnitudeSTE,
        "static_sparse": partial(StaticSparse, **_NO_EVENTS),
        "set": partial(Rewired, growth="random"),
        "rigl": partial(Rewired, growth="gradient"),
    },
    Pruner,
)

# Fields that the training loop sets, not the config section.
_GIVEN = ("name", "total_steps", "steps_per_epoch")


def pruner_fields(name: str) -> dict[str, Any]:
    """Return the config fields of pruner `name` with their defaults.

    Raises:
        ConfigError: there is no such pruner.
    """
    return defaults_of(_entry(name), *_GIVEN)


def _entry(name: Any) -> Any:
    entry = PRUNERS[name]
    owner = getattr(entry, "func", entry)
    if inspect.isclass(owner) and issubclass(owner, Pruner) and not inspect.isabstract(owner):
        return entry
    raise ConfigError(
        f"pruner.name is {name!r}, which is {owner!r}; expected a subclass of Pruner that defines "
        "all its methods"
    )


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
    steps = {"total_steps": total_steps, "steps_per_epoch": steps_per_epoch}
    return build(_entry(name), options, "pruner", name=name, **steps)


__all__ = [
    "PRUNERS",
    "PruneState",
    "Pruner",
    "Ranked",
    "SparseStep",
    "Sparsity",
    "TrainState",
    "apply_masks",
    "apply_straight_through",
    "by_path",
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
