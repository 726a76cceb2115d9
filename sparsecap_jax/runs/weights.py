"""Finished weights in one small file: kept values and one bit per weight, no pickles.

A `.npz` (not compressed, unless compact) with an entry `format_version`; for a dense leaf `a/b`
the array `dense:a/b`; for a sparse one `shape:a/b`, `bits:a/b` (the mask, row-major, packed by
`numpy.packbits`) and `values:a/b` (the kept weights in the same order). Sizes: 4 bytes per kept
weight and 1/8 byte per weight of a sparse leaf. A compact file is compressed and has float16
values: at 95% sparsity 2 bytes per kept weight and about 1/28 byte per weight.
"""

import pathlib
import zipfile
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.files import write_atomically
from sparsecap_jax.types import PyTree

FORMAT_VERSION = 1


def save_weights(
    path: str | pathlib.Path, params: PyTree, masks: PyTree | None = None, *, compact: bool = False
) -> int:
    """Write float32 params, zeros in place of pruned weights, and return the size in bytes.

    Leaves without a mask are stored sparse where at least half of them is 0. A `compact` file is
    compressed, its values rounded to float16. The file appears whole or not at all.
    """
    flat_masks = flatten_dict(masks or {}, sep="/")
    entries: dict[str, np.ndarray] = {"format_version": np.int32(FORMAT_VERSION)}
    for name, value in flatten_dict(params, sep="/").items():
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


def load_weights(path: str | pathlib.Path) -> dict[str, Any]:
    """Read what `save_weights` wrote.

    Returns:
        `{"params": ..., "masks": ...}`, float32; masks are binary and cover the sparse leaves.

    Raises:
        CheckpointError: the file is missing, corrupt, or of another format.
    """
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            entries = {key: file[key] for key in file.files}
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; expected weights (.npz)") from error
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: corrupt or not a weights file: {error}") from error
    version = entries.pop("format_version", None)
    if version is None or int(version) != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format_version is {version}; this release reads {FORMAT_VERSION}"
        )
    params, masks = {}, {}
    for entry, value in entries.items():
        kind, _, name = entry.partition(":")
        if kind == "dense":
            params[name] = value.astype(np.float32)
        elif kind == "shape":
            params[name], masks[name] = _unpack(path, name, entries)
    return {"params": unflatten_dict(params, sep="/"), "masks": unflatten_dict(masks, sep="/")}


def misfits(tree: PyTree, expected: PyTree) -> dict[str, str]:
    """Describe the leaves that are missing, extra, or of another shape than expected, by path."""
    shapes, expected = (
        {path: tuple(leaf.shape) for path, leaf in flatten_dict(leaves, sep="/").items()}
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


def _unpack(path, name: str, entries: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Weights and binary mask of one sparse leaf."""
    shape = tuple(int(size) for size in entries[f"shape:{name}"])
    bits, values = entries.get(f"bits:{name}"), entries.get(f"values:{name}")
    count = int(np.prod(shape))
    if bits is None or values is None or bits.size != -(-count // 8):
        raise CheckpointError(f"{path}: {name}: bits or values are missing or of another size")
    kept = np.unpackbits(bits, count=count).astype(bool).reshape(shape)
    if int(kept.sum()) != values.size:
        raise CheckpointError(f"{path}: {name}: {values.size} values for {int(kept.sum())} bits")
    weights = np.zeros(shape, np.float32)
    weights[kept] = values
    return weights, kept.astype(np.float32)
