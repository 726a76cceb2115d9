"""Units of layers, and where they lie in the leaves of a model: the declarations of `compact`."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sparsecap_jax.errors import ConfigError

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Axis:
    """The place of a layer's N units along an axis of a leaf.

    Unit u has the entries `start + (block * N + u) * width + i` for i below `width`.

    Attributes:
        axis: the axis; negative ones count from the last.
        start: first entry of the units, where the axis joins several inputs.
        blocks: number of times that the units follow one another: 4 for the gates of an LSTM, H x W
            for the flattened output `[H, W, N]` of a convolution.
        width: number of neighbours that belong to one unit: H x W for an output `[N, H, W]`.
    """

    axis: int
    start: int = 0
    blocks: int = 1
    width: int = 1

    def entries(self, units: int) -> np.ndarray:
        """Return int `[N, blocks * width]`: the entries of each unit."""
        block = np.arange(self.blocks)[None, :, None] * units
        unit = np.arange(units)[:, None, None]
        return (self.start + (block + unit) * self.width + np.arange(self.width)).reshape(units, -1)


class Whole(Axis):
    """An axis given as a number, which holds units alone."""


Where = int | Axis | Sequence[int | Axis]


@dataclasses.dataclass(frozen=True)
class Units:
    """The units of one layer: the leaves that make them, and those that read them.

    Both map a path, as patterns see it, to the axis of the units there, or to several. An axis
    given as a number, and that of the first leaf of `makes`, has nothing but units. Every leaf
    whose shape depends on the number of units must occur.

    No norm over the units, such as a layer norm, may lie between `makes` and `reads`: removed units
    would change what the others become, and nothing in the leaves reports it. A batch norm may lie
    there with `activation` None alone, and its leaves belong to `makes`.

    Attributes:
        makes: leaves whose axis yields the units, biases (leaves of one dimension) included.
        reads: leaves whose axis takes them.
        activation: elementwise function between `makes` and `reads`, such as `jax.nn.relu`; None
            where the value of a unit is no such function, as in an LSTM: then constant units stay.
        bias: leaf that is added to the product with the one matrix that reads; constant values
            move there. Without it only units that are always 0 count as constant.
        width: name of the field that sets the number of units, where several layers share one: they
            all keep as many units as the one with the most.
    """

    makes: Mapping[str, Where]
    reads: Mapping[str, Where]
    activation: Callable[[Any], Any] | None = None
    bias: str = ""
    width: str = ""


def count_units(path: str, axis: Axis, leaves: Arrays) -> int:
    """Return the number of units of an axis that holds nothing else."""
    size, share = leaves[path].shape[axis.axis], axis.blocks * axis.width
    if size % share or axis.start:
        raise ConfigError(
            f"compact: {path!r} of shape {leaves[path].shape} does not hold units alone at {axis}; "
            "begin `makes` with a leaf that does"
        )
    return size // share


def listed_places(places: Mapping[str, Where]) -> list[tuple[str, Axis]]:
    """Return pairs of path and axis, numbers as `Whole`."""
    pairs = []
    for path, where in places.items():
        for axis in where if isinstance(where, Sequence) else (where,):
            pairs.append((path, axis if isinstance(axis, Axis) else Whole(axis)))
    return pairs


def named_leaves(chain: Sequence[Units]) -> set[str]:
    """Return the paths of the leaves that a chain names."""
    paths = {path for units in chain for path in (*units.makes, *units.reads, units.bias)}
    return paths - {""}
