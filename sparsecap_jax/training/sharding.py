"""Placement of a training state on a mesh of devices: a table of rules from paths to axes.

A mesh has two axes: batches are split over `data`, and rules may split parameters over `data` and
`model`. Masks, gradients and optimizer moments lie where their parameters lie. XLA adds the
communication, so that no model knows of it and the numbers stay the same.

References:
    Rajbhandari et al., "ZeRO: memory optimizations toward training trillion parameter models"
    (2020), arXiv 1910.02054 (recipe `fsdp`, its stage 3). Shoeybi et al., "Megatron-LM" (2019),
    arXiv 1909.08053, section 3 (recipe `vocabulary`, its parallel output embedding).
"""

import dataclasses
import math
import re
from typing import Annotated, Any, Literal

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning.paths import Path, by_path, matching, show, to_path
from sparsecap_jax.settings import MAY_CHANGE, Range, nearest
from sparsecap_jax.types import PyTree

AXES = ("data", "model")
LARGEST = "largest"
RECIPES: dict[str, tuple[str, ...]] = {
    "replicated": (),
    "fsdp": (f".*={LARGEST}",),
    "vocabulary": (r"(logits?|logit_\d+)/kernel=-,model", r"(logits?|logit_\d+)/bias=model"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Section `mesh` of a config.

    Attributes:
        model: devices along the axis `model`; the others of `train.devices` are along `data`.
        sharding: `replicated` (all parameters on every device), `fsdp` (each split over `data`
            along its largest dimension that divides), or `vocabulary` (the layer of the logits
            split over `model` by words).
        rules: texts `PATTERN=AXES`, which come before those of `sharding`; the first whose regex
            matches a parameter's path `a/b/kernel` as a whole counts. AXES names an axis for each
            dimension: `data`, `model`, `data+model` or `-`, separated by commas; or it is
            `largest`, as in `fsdp`.
    """

    model: Annotated[int, Range(1, 100_000), MAY_CHANGE] = 1
    sharding: Annotated[Literal["replicated", "fsdp", "vocabulary"], MAY_CHANGE] = "replicated"
    rules: Annotated[tuple[str, ...], MAY_CHANGE] = ()

    def __post_init__(self):
        for rule in self.rules:
            pattern, _ = _parse(rule)
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"mesh.rules: {pattern!r} is no regex: {error}") from error


def make_mesh(devices: int, batch_size: int, model: int = 1) -> Mesh:
    """Make a mesh `data` x `model` over the first `devices` accelerators (0: all).

    Args:
        devices: their number.
        batch_size: images of a batch, which the axis `data` must divide.
        model: devices along the axis `model`.

    Raises:
        ConfigError: there are fewer devices, or numbers do not divide each other.
    """
    count = devices or jax.device_count()
    if count > jax.device_count():
        raise ConfigError(
            f"config.train.devices is {count}, but this machine has {jax.device_count()}"
        )
    if count % model:
        raise ConfigError(
            f"config.mesh.model is {model}; expected a divisor of {count} devices "
            "(config.train.devices)"
        )
    if batch_size % (count // model):
        raise ConfigError(
            f"config.data.batch_size is {batch_size}; expected a multiple of {count // model} "
            "devices (config.train.devices / config.mesh.model)"
        )
    auto = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((count // model, model), AXES, auto, devices=jax.devices()[:count])


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a training state lies on a mesh.

    Attributes:
        mesh: the devices.
        rules: texts `PATTERN=AXES`, see `MeshConfig`; the first that matches counts.
    """

    mesh: Mesh
    rules: tuple[str, ...] = ()

    @classmethod
    def of(cls, mesh: Mesh, config: MeshConfig) -> "Placement":
        """Return the placement that a config asks for."""
        return cls(mesh, (*config.rules, *RECIPES[config.sharding]))

    def specs(self, params: PyTree) -> dict[Path, PartitionSpec]:
        """Return the axes of each parameter by path.

        Args:
            params: the parameters, or their shapes.

        Raises:
            ConfigError: a rule matches no parameter, has too many dimensions for one, or an axis
                does not divide its dimension.
        """
        leaves = by_path(params)
        specs: dict[Path, PartitionSpec] = {}
        for rule in self.rules:
            pattern, axes = _parse(rule)
            for path in matching((pattern,), leaves, "config.mesh.rules") - specs.keys():
                specs[path] = self._spec(rule, axes, path, leaves[path].shape)
        return {path: specs.get(path, PartitionSpec()) for path in leaves}

    def shardings(self, state: PyTree, params: PyTree) -> PyTree:
        """Return the sharding of each leaf of a state: that of its parameter.

        A leaf belongs to the parameter whose path its own ends with and whose shape it has. All
        others (numbers of steps, keys, vectors of packed optimizers) are on every device.

        Args:
            state: any pytree, such as a `TrainState`, or its shapes.
            params: the parameters, or their shapes.
        """
        specs, shapes = self.specs(params), by_path(params)

        def place(keys, leaf):
            path = to_path(keys)
            ends = (path[start:] for start in range(len(path)))
            longest = (end for end in ends if end in specs and shapes[end].shape == leaf.shape)
            return NamedSharding(self.mesh, specs.get(next(longest, ()), PartitionSpec()))

        return jax.tree_util.tree_map_with_path(place, state)

    def _spec(self, rule: str, axes: Any, path: Path, shape: tuple[int, ...]) -> PartitionSpec:
        """Return the axes of one parameter."""
        if axes == LARGEST:
            sizes = [(n, -i) for i, n in enumerate(shape) if n % self.mesh.shape["data"] == 0]
            place = -max(sizes)[1] if sizes else len(shape)
            return PartitionSpec(*["data" if i == place else None for i in range(len(shape))])
        if len(axes) > len(shape):
            raise ConfigError(
                f"config.mesh: rule {rule!r} has {len(axes)} dimensions, but {show(path)} has "
                f"shape {shape}"
            )
        for size, names in zip(shape, axes, strict=False):
            parts = math.prod(self.mesh.shape[name] for name in names or ())
            if size % parts:
                raise ConfigError(
                    f"config.mesh: rule {rule!r} splits {show(path)} of shape {shape} into {parts} "
                    f"parts, which do not divide {size}"
                )
        return PartitionSpec(*axes)


def _parse(rule: str) -> tuple[str, str | tuple[tuple[str, ...] | None, ...]]:
    """Return the pattern of a rule, and its axes; a ConfigError says what is wrong with them."""
    pattern, equals, text = rule.rpartition("=")
    if not equals or not pattern:
        raise ConfigError(f"mesh.rules: {rule!r} is not PATTERN=AXES")
    if text == LARGEST:
        return pattern, LARGEST
    axes = tuple(None if part == "-" else tuple(part.split("+")) for part in text.split(","))
    for name in (name for names in axes for name in names or ()):
        if name not in AXES:
            raise ConfigError(f"mesh.rules: {rule!r} has axis {name!r}; {nearest(name, AXES)}")
    named = [name for names in axes for name in names or ()]
    if len(named) > len(set(named)):
        raise ConfigError(f"mesh.rules: {rule!r} names an axis twice")
    return pattern, axes
