"""Smaller dense models: matrices without the units that pruning has left dead.

A unit is one number that a layer computes and others read: a column of one kernel and a row of the
next. Masks cost its full size as long as the matrices keep their shapes. `compact` takes dead units
out of both, so that the result runs as any dense model does, and gives the same outputs.

A unit is dead

    unread    if all weights that read it are 0, or lead to dead units alone, whatever its value is;
    constant  if all weights that make it are 0, biases aside: its value is that of the activation
              at its bias, which moves into the bias of the layer that reads it.
"""

import dataclasses
import re
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning.masks import finalize
from sparsecap_jax.pruning.paths import arrays_by_path, is_float, last_name, map_paths, show
from sparsecap_jax.pruning.units import (
    Arrays,
    Units,
    Whole,
    count_units,
    listed_places,
    named_leaves,
)
from sparsecap_jax.types import PyTree

_BIAS = re.compile(r"(bias|b\d*)(_.*)?|")


@dataclasses.dataclass(frozen=True)
class Compacted:
    """A smaller model.

    Attributes:
        params: parameters in the structure that was given, without the removed units.
        masks: the masks of what is left; None where none were given.
        units: for each item of the chain, the number of units left and the number before.
        widths: number of units left by name of `Units.width`.
        sizes: number of parameters left and before.
    """

    params: PyTree
    masks: PyTree | None
    units: tuple[tuple[int, int], ...]
    widths: dict[str, int]
    sizes: tuple[int, int]


def compact(params: PyTree, chain: Sequence[Units], masks: PyTree | None = None) -> Compacted:
    """Remove the dead units of a pruned model; outside jit.

        hidden = Units(
            makes={"layers_0/kernel": -1, "layers_0/bias": -1}, reads={"layers_2/kernel": -2},
            activation=jax.nn.relu, bias="layers_2/bias",
        )
        small = compact(params, [hidden], masks).params

    Outputs are the same but for the order of sums. At least one unit of each layer stays. Numbers
    of units that a module holds outside of its arrays, such as `out_features` of NNX, stay as they
    were.

    Args:
        params: finished weights, zeros in place, or any with their `masks`.
        chain: layers whose units may go, in any order; a unit that only dead units of others read
            is dead.
        masks: binary masks.

    Raises:
        ConfigError: a path has no leaf, axes or layers of one width differ in their numbers of
            units, or a vector that makes units with an `activation` is no bias.

    References:
        Sietsma and Dow, "Creating artificial neural networks that generalize" (1991), Neural
        Networks 4 (units of constant outputs, which move into biases).

    Cost: a few passes over the weights, on the host; memory of two copies of them.
    """
    params = params if masks is None else finalize(params, masks)
    arrays = {show(path): leaf for path, leaf in arrays_by_path(params).items()}
    leaves = {path: np.array(arrays[path]) for path in named_leaves(chain) if path in arrays}
    layers = [_Layer(units, leaves) for units in chain]
    while any(layer.kill(leaves) for layer in layers):
        pass  # a dead unit reads nothing, which may leave others unread
    kept: dict[str, int] = {}
    counts: dict[str, int] = {}
    for number, layer in enumerate(layers):
        name = layer.units.width or f"chain[{number}]"
        kept[name] = max(kept.get(name, 1), int(layer.alive.sum()))
        if counts.setdefault(name, len(layer.alive)) != len(layer.alive):
            raise ConfigError(f"compact: layers of width {name!r} differ in their numbers of units")
    gone: dict[tuple[str, int], list[int]] = {}
    for number, layer in enumerate(layers):
        layer.mark(kept[layer.units.width or f"chain[{number}]"], leaves, gone)

    def shrink(arrays: Arrays) -> Arrays:
        for (path, axis), entries in gone.items():
            if path in arrays:
                arrays[path] = np.delete(arrays[path], entries, axis)
        return arrays

    sizes = {path: leaf.size for path, leaf in arrays.items() if is_float(leaf)}
    total, small = sum(sizes.values()), shrink(leaves)
    bits = {show(p): np.array(mask) for p, mask in arrays_by_path(masks or {}).items()}
    return Compacted(
        params=_put(params, small),
        masks=None if masks is None else _put(masks, shrink(bits)),
        units=tuple((len(layer.alive) - layer.removed, len(layer.alive)) for layer in layers),
        widths={name: kept[name] for name in kept if not name.startswith("chain[")},
        sizes=(sum(small[p].size if p in small else n for p, n in sizes.items()), total),
    )


def _put(tree: PyTree, arrays: Arrays) -> PyTree:
    def leaf(path, old):
        return jnp.asarray(arrays[show(path)], old.dtype) if show(path) in arrays else old

    return map_paths(leaf, tree)


class _Layer:
    """The units of one layer while the dead ones are found."""

    def __init__(self, units: Units, leaves: Arrays):
        self.units = units
        self.makes, self.reads = listed_places(units.makes), listed_places(units.reads)
        for path in (*units.makes, *units.reads, *([units.bias] if units.bias else [])):
            if path not in leaves:
                raise ConfigError(f"compact: no parameter {path!r}")
        if not self.makes or not self.reads or (units.bias and len(self.reads) > 1):
            raise ConfigError(
                f"compact: Units({units.makes}, {units.reads}): expected leaves that make and that "
                "read, and with a bias one that reads"
            )
        count = count_units(*self.makes[0], leaves)
        for path, axis in self.makes + self.reads:
            entries, size = axis.entries(count), leaves[path].shape[axis.axis]
            fits = entries.size == size if isinstance(axis, Whole) else entries.max() < size
            if not fits:
                raise ConfigError(
                    f"compact: {path!r} of shape {leaves[path].shape} does not hold the {count} "
                    f"units of {self.makes[0][0]!r} at {axis}"
                )
        vectors = [path for path in units.makes if leaves[path].ndim == 1]
        odd = [path for path in vectors if not _BIAS.fullmatch(last_name(tuple(path.split("/"))))]
        if units.activation is not None and odd:
            raise ConfigError(
                f"compact: {odd[0]!r} is no bias by its name; with a norm between `makes` and "
                "`reads` a unit has no `activation` at its bias: give None"
            )
        self.alive, self.removed = np.ones(count, bool), 0

    def kill(self, leaves: Arrays) -> bool:
        """Write zeros into the weights of dead units; return whether there were new ones."""
        dead = self.alive & ~self._is_read(leaves)
        constant, values = self._constants(leaves)
        constant &= self.alive & ~dead
        if self.units.bias and constant.any():
            self._fold(np.where(constant, values, 0.0), leaves)
        else:
            constant &= values == 0
        dead |= constant
        self.alive &= ~dead
        for path, axis in self.makes + self.reads:
            slices = np.moveaxis(leaves[path], axis.axis, 0)
            slices[axis.entries(len(dead))[dead].ravel()] = 0
        return bool(dead.any())

    def _is_read(self, leaves: Arrays) -> np.ndarray:
        """Return bool `[N]`: whether a unit reaches anything but the layer's own unread units."""
        count = len(self.alive)
        outside, within = np.zeros(count, bool), np.zeros((count, count), bool)
        for path, axis in self.reads:
            place = axis.axis % leaves[path].ndim
            read = np.moveaxis(leaves[path] != 0, place, 0)
            read = read[axis.entries(count).ravel()].reshape(count, -1, *read.shape[1:]).any(1)
            owners = self._owners(path, place, leaves)
            if owners is None:
                outside |= read.reshape(count, -1).any(1)
                continue
            target, owner = owners
            # `read` has lost the axis of the units that it reads.
            lanes = np.moveaxis(read, target + (target < place), -1).reshape(count, -1, len(owner))
            lanes = lanes.any(1)
            outside |= lanes[:, owner < 0].any(1)
            for unit in np.unique(owner[owner >= 0]):
                within[:, unit] |= lanes[:, owner == unit].any(1)
        reached = outside
        while (further := reached | (within & reached).any(1)).sum() > reached.sum():
            reached = further
        return reached

    def _owners(self, path: str, place: int, leaves: Arrays) -> tuple[int, np.ndarray] | None:
        """Return another axis of a leaf that makes this layer's units too, and its entries' units.

        Entries of no unit have -1; None where the leaf makes none.
        """
        for made, axis in self.makes:
            target = axis.axis % leaves[path].ndim
            if made == path and target != place:
                owner = np.full(leaves[path].shape[target], -1)
                entries = axis.entries(len(self.alive))
                owner[entries] = np.arange(len(self.alive))[:, None]
                return target, owner
        return None

    def _constants(self, leaves: Arrays) -> tuple[np.ndarray, np.ndarray]:
        """Return bool `[N]`, whether only biases make a unit, and float64 `[N]`, its value then."""
        count, sums = len(self.alive), np.zeros(len(self.alive))
        if self.units.activation is None:
            return np.zeros(count, bool), sums
        constant = np.ones(count, bool)
        for path, axis in self.makes:
            slices = np.moveaxis(leaves[path], axis.axis, 0)[axis.entries(count)]
            if leaves[path].ndim > 1:
                constant &= ~(slices != 0).reshape(count, -1).any(1)
            elif slices.shape[1] == 1:
                sums += slices[:, 0]
            else:
                constant[:] = False  # a unit with several biases has several values
        values = np.asarray(self.units.activation(jnp.asarray(sums, jnp.float32)), np.float64)
        if self.units.bias and leaves[self.reads[0][0]].ndim > 2:
            constant &= values == 0  # the edges of a convolution see zeros instead
        return constant, values

    def _fold(self, values: np.ndarray, leaves: Arrays) -> None:
        """Add what units of these values give to the layer that reads them to its bias."""
        ((path, axis),) = self.reads
        rows = np.moveaxis(leaves[path], axis.axis, 0)[axis.entries(len(values))]
        total = np.tensordot(values, rows.astype(np.float64).sum(1), 1)
        if total.ndim == 1 and total.shape == leaves[self.units.bias].shape:
            old = leaves[self.units.bias]
            leaves[self.units.bias] = (old + total).astype(old.dtype)
        elif values.any():
            raise ConfigError(
                f"compact: {self.units.bias!r} of shape {leaves[self.units.bias].shape} is no bias "
                f"of {path!r}, whose products have shape {total.shape}"
            )

    def mark(self, kept: int, leaves: Arrays, gone: dict[tuple[str, int], list[int]]) -> None:
        """Add the entries of all but `kept` units to `gone`, by path and axis."""
        order = np.argsort(~self.alive, kind="stable")  # living units first
        removed = np.sort(order[kept:])
        self.removed = len(removed)
        for path, axis in self.makes + self.reads:
            key = path, axis.axis % leaves[path].ndim
            gone.setdefault(key, []).extend(axis.entries(len(order))[removed].ravel().tolist())
