"""Finished weights as arrays: what every form of them reads and writes.

`load_weights` reads model files (`model_files`, docs/formats.md), safetensors, and `.npz`. The last
needs nothing but NumPy: kept values and one bit per weight. It is not compressed, unless compact,
and has an entry `format_version`; for a dense leaf `a/b` the array `dense:a/b`; for a sparse one
`shape:a/b`, `bits:a/b` (the mask, row-major, packed by `numpy.packbits`) and `values:a/b` (the kept
weights in the same order). Sizes: 4 bytes per kept weight and 1/8 byte per weight of a sparse leaf.
A compact file is compressed and has float16 values: at 95% sparsity 2 bytes per kept weight and
about 1/28 byte per weight.
"""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from sparsecap_jax.arrays import ArrayFile
from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.files import foreign_errors, write_atomically
from sparsecap_jax.model_files import (
    MAGIC,
    ModelFile,
    check_paths,
    read_safetensors,
    write_safetensors,
)
from sparsecap_jax.trees import flatten, unflatten
from sparsecap_jax.types import PyTree

FORMAT_VERSION = 1

MAX_WEIGHTS = 2**28
"""Weights of a model, whatever its config says: five times the largest model of the papers."""

SAFETENSORS = ".safetensors"
MODEL_SUFFIX = ".scap"

_MAX_RANK = 33


def save_weights(
    path: str | pathlib.Path, params: PyTree, masks: PyTree | None = None, *, compact: bool = False
) -> int:
    """Write float32 params, zeros in place of pruned weights, and return the size in bytes.

    Leaves without a mask are stored sparse where at least half of them is 0. A `compact` file is
    compressed, its values rounded to float16. The file appears whole or not at all.
    """
    flat_masks = flatten(masks or {})
    entries: dict[str, Any] = {"format_version": np.int32(FORMAT_VERSION)}
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
    """Read finished weights in any form: a model file, safetensors, or `.npz`.

    Args:
        path: the file.
        expected: params whose paths and shapes it must have. These, and that they are at most
            `MAX_WEIGHTS` weights, are checked before the weights are read.

    Returns:
        `{"params": ..., "masks": ...}`, params in float32; masks are binary and cover the sparse
        leaves.

    Raises:
        CheckpointError: the file is missing, corrupt, of another format, or of another model.
    """
    path = pathlib.Path(path)
    if path.is_file() and path.suffix == SAFETENSORS:
        return load_safetensors(path, expected)
    start = b""
    if path.is_file():
        with foreign_errors(f"{path}: cannot be read", CheckpointError), path.open("rb") as file:
            start = file.read(len(MAGIC))
    if path.suffix == MODEL_SUFFIX and start != MAGIC:
        raise CheckpointError(f"{path}: empty, cut short or not a model file (docs/formats.md)")
    if start == MAGIC:
        with ModelFile(path) as model_file:
            return read_model(path, model_file, expected)
    return _load_npz(path, expected)


def read_model(path: Any, file: ModelFile, expected: PyTree | None = None) -> dict[str, Any]:
    """Return the weights of an open model file, as `load_weights` does."""
    _check_shapes(path, file.shapes, expected)
    params, masks = file.read()
    return {"params": unflatten(params), "masks": unflatten(masks)}


def save_safetensors(path: str | pathlib.Path, params: PyTree, masks: PyTree) -> int:
    """Write float32 params, zeros in place of pruned weights, and return the size in bytes.

    A mask is stored, as `mask:PATH`, only where it keeps weights that are 0.
    """
    flat, flat_masks = flatten(params), flatten(masks)
    tensors, masked = {}, {}
    for name, value in flat.items():
        tensors[name] = value = np.asarray(value, np.float32)
        if name in flat_masks:
            kept = np.asarray(flat_masks[name]) != 0
            tensors[name] = np.where(kept, value, np.float32(0))
            if not np.array_equal(kept, tensors[name] != 0):
                masked[f"mask:{name}"] = kept.astype(np.uint8)
    return write_safetensors(path, tensors | masked, {"masked": json.dumps(sorted(flat_masks))})


def load_safetensors(path: str | pathlib.Path, expected: PyTree | None = None) -> dict[str, Any]:
    """Read what `save_safetensors` wrote; as `load_weights`."""
    tensors, metadata = read_safetensors(path)
    with foreign_errors(f"{path}: damaged", CheckpointError):
        names = json.loads(metadata.get("masked", "[]"))
        if not {*names} <= tensors.keys():
            raise ValueError(f"masks of {names!s:.200}; expected names of weights")
        masks = {name: tensors.pop(f"mask:{name}", tensors[name]) != 0 for name in names}
        if any(masks[name].shape != tensors[name].shape for name in names):
            raise ValueError("masks of other shapes than the weights")
        check_paths(tensors)
        params = {name: array.astype(np.float32, copy=False) for name, array in tensors.items()}
    _check_shapes(path, {name: array.shape for name, array in params.items()}, expected)
    masks = {name: mask.astype(np.uint8) for name, mask in masks.items()}
    return {"params": unflatten(params), "masks": unflatten(masks)}


def _load_npz(path: pathlib.Path, expected: PyTree | None) -> dict[str, Any]:
    """Read what `save_weights` wrote."""
    with ArrayFile(path, "corrupt or not a weights file (.npz)", CheckpointError) as file:
        version = file.read("format_version", "iu") if "format_version" in file.names else None
        if version is None or version.shape or version != FORMAT_VERSION:
            raise CheckpointError(
                f"{path}: format_version is {version}; this release reads {FORMAT_VERSION}"
            )
        shapes = _stored_shapes(path, file)
        _check_shapes(path, shapes, expected)
        params, masks = {}, {}
        for name, shape in shapes.items():
            if f"shape:{name}" in file.names:
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


def _check_shapes(
    path: Any, shapes: Mapping[str, tuple[int, ...]], expected: PyTree | None
) -> None:
    """Raise a CheckpointError about shapes that are not as expected, or too large."""
    if expected is not None:
        check_fit(path, {name: Leaf(shape) for name, shape in shapes.items()}, expected)
    total = sum(map(math.prod, shapes.values()))
    if total > MAX_WEIGHTS:
        raise CheckpointError(f"{path}: {total} weights; expected at most {MAX_WEIGHTS}")


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
    for entry in file.names:
        kind, _, name = entry.partition(":")
        if kind not in ("dense", "shape"):
            continue
        if name in shapes or not name.isprintable():
            raise CheckpointError(f"{path}: {name!r:.200}: expected plain names, each once")
        shapes[name] = file.shape(entry, "fiuU")
        if kind == "shape":
            sizes = file.read(entry, "iu", 1).tolist() if shapes[name] < (_MAX_RANK,) else [-1]
            if min(sizes, default=0) < 0:
                raise CheckpointError(f"{path}: {entry}: {sizes} is no shape")
            shapes[name] = tuple(sizes)
    with foreign_errors(str(path), CheckpointError):
        check_paths(shapes)
    return shapes


def _unpack(
    path: Any, name: str, shape: tuple[int, ...], file: ArrayFile
) -> tuple[np.ndarray, np.ndarray]:
    """Weights and binary mask of one sparse leaf."""
    count, packed = math.prod(shape), file.read(f"bits:{name}", "u")
    if packed.shape != (-(-count // 8),):
        found = f"{list(packed.shape)} bytes of bits for {count} weights"
        raise CheckpointError(f"{path}: {name}: {found}")
    kept = np.unpackbits(packed, count=count).astype(bool).reshape(shape)
    values = file.read(f"values:{name}")
    if values.shape != (int(kept.sum()),):
        found = f"{list(values.shape)} values for {int(kept.sum())} bits"
        raise CheckpointError(f"{path}: {name}: {found}")
    weights = np.zeros(shape, np.float32)
    weights[kept] = values
    return weights, kept.astype(np.float32)
