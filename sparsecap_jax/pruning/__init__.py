"""Pruning for any JAX model: masks are a pytree along with the parameters, pruners pure functions.

See docs/pruning. A new method is a subclass of `Ranked` (or `Pruner`) and one line in `PRUNERS`.
"""

import inspect
from functools import partial
from typing import Any

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning import methods, rewiring, variants
from sparsecap_jax.pruning.base import Pruner, PruneState
from sparsecap_jax.pruning.compact import Compacted, compact
from sparsecap_jax.pruning.fisher import AdamFisher
from sparsecap_jax.pruning.layerwise import Images, linen_inputs, prune_layers, sparsegpt, wanda
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
from sparsecap_jax.pruning.moments import second_moments
from sparsecap_jax.pruning.movement import Movement, SoftMovement
from sparsecap_jax.pruning.packed import PackedState, packed, packed_step, take_kept
from sparsecap_jax.pruning.paths import by_path
from sparsecap_jax.pruning.ranked import Ranked
from sparsecap_jax.pruning.reports import SparsityHistory, dead_units, layer_table, overlap
from sparsecap_jax.pruning.step import SparseStep, TrainState, sparse_step
from sparsecap_jax.pruning.summary import summarize
from sparsecap_jax.pruning.supermask import Supermask
from sparsecap_jax.pruning.units import Axis, Units
from sparsecap_jax.settings import Registry, build, defaults_of

# Parts that a method may fix. What a `partial` is given belongs to the name: no config sets it.
_CRITERIA: dict[str, dict[str, Any]] = {
    "blind": {"distribution": "global", "standardize": False},
    "uniform": {"distribution": "uniform", "standardize": False},
    "dist": {"distribution": "global", "standardize": True},
}
_NO_EVENTS: dict[str, Any] = {
    "initial_sparsity": 0.0,
    "start_step": None,
    "frequency": None,
    "events": None,
}

_one_shot = partial(methods.OneShotMagnitude, rewinds=False, **_NO_EVENTS)
_lottery = partial(methods.OneShotMagnitude, rewinds=True, **_NO_EVENTS)
_gradual = partial(methods.Magnitude, when="polynomial", normalize=False)
_magnitude = partial(methods.Magnitude, standardize=False)
_saliency = partial(methods.Saliency, reference_signed=False)
_before: dict[str, Any] = {
    "when": "before",
    "distribution": "global",
    "normalize": False,
    **_NO_EVENTS,
}

PRUNERS: Registry[Any] = Registry(
    "pruner.name",
    {
        "none": methods.NoPruner,
        "supermask": Supermask,
        **{f"mag_{name}": partial(_one_shot, **parts) for name, parts in _CRITERIA.items()},
        **{f"mag_grad_{name}": partial(_gradual, **parts) for name, parts in _CRITERIA.items()},
        **{f"lottery_mag_{name}": partial(_lottery, **parts) for name, parts in _CRITERIA.items()},
        "lottery_mask_freeze": partial(methods.MaskFreeze, rewinds=True),
        "mask_freeze": partial(methods.MaskFreeze, rewinds=False),
        "snip": partial(methods.Saliency, **_before),
        # Those of jaxpruner, by its names.
        "magnitude": _magnitude,
        "global_magnitude": partial(_magnitude, distribution="global", normalize=True),
        "saliency": _saliency,
        "global_saliency": partial(_saliency, distribution="global", normalize=True),
        "random": methods.Random,
        "magnitude_ste": methods.MagnitudeSTE,
        "random_ste": variants.RandomSTE,
        "acdc": variants.ACDC,
        "adam_fisher": AdamFisher,
        "movement": Movement,
        "soft_movement": SoftMovement,
        "static_sparse": partial(rewiring.StaticSparse, **_NO_EVENTS),
        "set": partial(rewiring.Rewired, growth="random"),
        "rigl": partial(rewiring.Rewired, growth="gradient"),
    },
    Pruner,
)

# Fields that the training loop sets, not the config section.
_GIVEN = ("name", "total_steps", "steps_per_epoch")


def pruner_fields(name: str) -> dict[str, Any]:
    """Return the config fields of pruner `name` (a ConfigError if unknown) with their defaults."""
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

    Raises:
        ConfigError: an unknown name or key, or a value of the wrong type or out of range.
    """
    options = dict(config.items())
    name = options.pop("name", None)
    steps = {"total_steps": total_steps, "steps_per_epoch": steps_per_epoch}
    return build(_entry(name), options, "pruner", name=name, **steps)


__all__ = [
    "PRUNERS",
    "Axis",
    "Compacted",
    "Images",
    "PackedState",
    "PruneState",
    "Pruner",
    "Ranked",
    "SparseStep",
    "Sparsity",
    "SparsityHistory",
    "TrainState",
    "Units",
    "apply_masks",
    "apply_straight_through",
    "by_path",
    "check_binary",
    "check_fit",
    "compact",
    "dead_units",
    "finalize",
    "layer_table",
    "linen_inputs",
    "make_pruner",
    "overall_sparsity",
    "overlap",
    "pack",
    "packed",
    "packed_step",
    "prune_layers",
    "pruner_fields",
    "second_moments",
    "sparse_step",
    "sparsegpt",
    "sparsity",
    "summarize",
    "take_kept",
    "unpack",
    "wanda",
]
