"""Finished weights in one small file: kept values and one bit per weight, no pickles.

A `.npz` (not compressed, unless compact) with an entry `format_version`; for a dense leaf `a/b`
the array `dense:a/b`; for a sparse one `shape:a/b`, `bits:a/b` (the mask, row-major, packed by
`numpy.packbits`) and `values:a/b` (the kept weights in the same order). Sizes: 4 bytes per kept
weight and 1/8 byte per weight of a sparse leaf. A compact file is compressed and has float16
values: at 95% sparsity 2 bytes per kept weight and about 1/28 byte per weight.
"""

import math
import pathlib
from typing import Any, NamedTuple

import numpy as np

from sparsecap_jax.arrays import ArrayFile
from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.files import write_atomically
from sparsecap_jax.trees import flatten, unflatten
from sparsecap_jax.types import PyTree

FORMAT_VERSION = 1

MAX_WEIGHTS = 2**28
"""Weights of a file that is read without its config: five times the largest model of the papers."""

_MAX_RANK = 33


def save_weights(
    path: str | pathlib.Path, params: PyTree, masks: PyTree | None = None, *, compact: bool = False
) -> int:
    """Write float32 params, zeros in place of pruned weights, and return the size in bytes.

    Leaves without a mask are stored sparse where at least half of them is 0. A `compact` file is
    compressed, its values rounded to float16. The file appears whole or not at all.
    """
    flat_masks = flatten(masks or {})
    entries: dict[str, np.ndarray] = {"format_version": np.int32(FORMAT_VERSION)}
    for name, value in flatten(params).items():
        value = np.asarray(value, np.float32)
        kept = np.asarray(flat_masks[name]) != 0 if name in flat_masks else value != 0
        if name in flat_masks or np.mean(kept) <= 0.5:
            entries[f"shape:{name}"] = np.asarray(value.shape, np.int64)
            entries[f"bits:{name}"] = np.packbits(kept)
            entries[f"values:{name}"] = value[kept]
        else:
            entries[f"dense:{name}"] = value
    if compact:
        floats = {key: value for key, value in entries.items() if value.dtype == np.float32}
        entries |= {key: value.astype(np.float16) for key, value in floats.items()}
    with write_atomically(path, "wb") as file:
        (np.savez_compressed if compact else np.savez)(file, **entries)
    return pathlib.Path(path).stat().st_size


def load_weights(path: str | pathlib.Path, expected: PyTree | None = None) -> dict[str, Any]:
    """Read what `save_weights` wrote.

    Args:
        path: the file.
        expected: params whose paths and shapes it must have; without them it may hold up to
            `MAX_WEIGHTS` weights. Both are checked before the weights are read.

    Returns:
        `{"params": ..., "masks": ...}`, float32; masks are binary and cover the sparse leaves.

    Raises:
        CheckpointError: the file is missing, corrupt, of another format, or of another model.
    """
    with ArrayFile(path, "corrupt or not a weights file (.npz)", CheckpointError) as file:
        version = file.read("format_version", "iu") if "format_version" in file.headers else None
        if version is None or version.shape or version != FORMAT_VERSION:
            raise CheckpointError(
                f"{path}: format_version is {version}; this release reads {FORMAT_VERSION}"
            )
        shapes = _stored_shapes(path, file)
        if expected is not None:
            check_fit(path, {name: Leaf(shape) for name, shape in shapes.items()}, expected)
        total = sum(math.prod(shape) for shape in shapes.values())
        if expected is None and total > MAX_WEIGHTS:
            raise CheckpointError(f"{path}: {total} weights; expected at most {MAX_WEIGHTS}")
        params, masks = {}, {}
        for name, shape in shapes.items():
            if f"shape:{name}" in file.headers:
                params[name], masks[name] = _unpack(path, name, shape, file)
            else:
                params[name] = file.read(f"dense:{name}").astype(np.float32)
    return {"params": unflatten(params), "masks": unflatten(masks)}


class Leaf(NamedTuple):
    """A leaf that is known by its shape alone."""

    shape: tuple[int, ...]


def check_fit(where: Any, tree: PyTree, expected: PyTree) -> None:
    """Raise a CheckpointError about the first of the `misfits` of weights, if there are any."""
    for fault in misfits(tree, expected).values():
        raise CheckpointError(f"{where}: not as config.json and tokenizer say: weight {fault}")


def misfits(tree: PyTree, expected: PyTree) -> dict[str, str]:
    """Describe the leaves that are missing, extra, or of another shape than expected, by path."""
    shapes, expected = (
        {path: tuple(leaf.shape) for path, leaf in flatten(leaves).items()}
        for leaves in (tree, expected)
    )
    faults = {}
    for path in sorted({*shapes, *expected}):
        if path not in shapes:
            faults[path] = f"{path} is missing"
        elif path not in expected:
            faults[path] = f"{path} is extra"
        elif shapes[path] != expected[path]:
            faults[path] = f"{path} has shape {shapes[path]}, expected {expected[path]}"
    return faults


def _stored_shapes(path: Any, file: ArrayFile) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all leaves by path; no path may lie within another."""
    shapes: dict[str, tuple[int, ...]] = {}
    for entry, header in file.headers.items():
        kind, _, name = entry.partition(":")
        if kind not in ("dense", "shape"):
            continue
        if name in shapes or not name.isprintable():
            raise CheckpointError(f"{path}: {name!r:.200}: expected plain names, each once")
        shapes[name] = header.shape
        if kind == "shape":
            sizes = file.read(entry, "iu", 1).tolist() if header.shape < (_MAX_RANK,) else [-1]
            if min(sizes, default=0) < 0:
                raise CheckpointError(f"{path}: {entry}: {sizes} is no shape")
            shapes[name] = tuple(sizes)
    for name in shapes:
        parts = name.split("/")
        if "" in parts or any("/".join(parts[:n]) in shapes for n in range(1, len(parts))):
            raise CheckpointError(f"{path}: {name}: expected a path that lies within no other")
    return shapes


def _unpack(
    path: Any, name: str, shape: tuple[int, ...], file: ArrayFile
) -> tuple[np.ndarray, np.ndarray]:
    """Weights and binary mask of one sparse leaf."""
    bits, values = (file.headers.get(f"{kind}:{name}") for kind in ("bits", "values"))
    count = math.prod(shape)
    if bits is None or values is None or bits.shape != (-(-count // 8),):
        raise CheckpointError(f"{path}: {name}: bits or values are missing or of another size")
    packed = file.read(f"bits:{name}", "u")
    kept = np.unpackbits(packed, count=count).astype(bool).reshape(shape)
    if values.shape != (int(kept.sum()),):
        found = f"{list(values.shape)} values for {int(kept.sum())} bits"
        raise CheckpointError(f"{path}: {name}: {found}")
    weights = np.zeros(shape, np.float32)
    weights[kept] = file.read(f"values:{name}")
    return weights, kept.astype(np.float32)
