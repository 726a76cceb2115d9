"""Items of a checkpoint: their checksums, and reading them with their sizes checked beforehand.

Whatever is wrong with a file is an error of any type; `checkpoints` names the item.
"""

import contextlib
import json
import math
import pathlib
import stat
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from sparsecap_jax.pruning.paths import by_path, nest, show
from sparsecap_jax.runs.weights import MAX_WEIGHTS, misfits
from sparsecap_jax.types import PyTree

_META = {"step", "score", "rng", "data", "crc32"}
_CHECKSUM = "its checksum differs from the one saved with it"
_MAX_BYTES = 2**26  # of the descriptions of arrays, which are read whole


class MisfitError(ValueError):
    """A checkpoint of another model."""


def read_meta(path: pathlib.Path, handler: ocp.JsonCheckpointHandler) -> dict[str, Any]:
    """Read the JSON item of a checkpoint; an error says what is wrong with it."""
    check_sizes(path.rglob("*"))
    meta = handler.restore(path)
    if not isinstance(meta, dict) or not meta.keys() >= _META:
        raise ValueError("fields are missing")
    if crc32_of_json(meta) != meta["crc32"].get("meta", crc32_of_json(meta)):
        raise ValueError(_CHECKSUM)
    return meta


def read_item(
    path: pathlib.Path,
    handler: ocp.PyTreeCheckpointHandler,
    checksum: int | None,
    like: PyTree | None,
    expected: PyTree | None = None,
) -> PyTree:
    """Read an item of arrays, all finite.

    Args:
        path: folder of the item, by its name.
        handler: Orbax's.
        checksum: `crc32` of what was saved.
        like: arrays whose shapes and shardings it must have; None for numpy arrays.
        expected: params whose paths and shapes numpy arrays must have.

    Raises:
        MisfitError: it is of another model.
        Exception: it is corrupt.
    """
    check_sizes(path.rglob("*"))
    # First one by one: a read that fails among others leaves tracebacks of these behind.
    for notes in path.glob("array_metadatas/*"):
        json.loads(notes.read_bytes())
    files = {"driver": "file", "path": f"{path}/"}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": files}).result()
    if not sum(len(store.read(key).result().value) for key in store.list().result()):
        raise ValueError("its arrays are missing")
    saved = handler.metadata(path).tree  # metadata in place of the arrays
    if path.name == "masks" and expected is not None:  # not every weight has one
        masked = by_path(saved)
        expected = nest({k: leaf for k, leaf in by_path(expected).items() if k in masked})
    check_shapes(saved, expected if like is None else like)
    if like is None:
        _check_total(path.name, saved)
    as_numpy, item = ocp.RestoreArgs(restore_type=np.ndarray), None
    restore_args = jax.tree.map(lambda _: as_numpy, saved)
    if like is not None:
        item = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        restore_args = ocp.checkpoint_utils.construct_restore_args(like)
    args = ocp.args.PyTreeRestore(item=item, restore_args=restore_args)
    tree = handler.restore(path, args=args)
    if crc32(tree) != checksum:
        raise ValueError(_CHECKSUM)
    for keys, leaf in jax.tree.leaves_with_path(tree):
        if not np.all(np.isfinite(leaf)):
            name = jax.tree_util.keystr(keys, simple=True, separator="/")
            raise ValueError(f"{name} is not finite")
    return tree


def check_sizes(paths: Iterable[pathlib.Path]) -> None:
    """Raise a ValueError about a file that is larger than any but those of the arrays, in `d/`."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # removed by a run that trains
            status, array = path.stat(), path.parent.name == "d"
            if stat.S_ISREG(status.st_mode) and not array and status.st_size > _MAX_BYTES:
                size = f"{path.name} has {status.st_size} bytes"
                raise ValueError(f"{size}, expected at most {_MAX_BYTES}")


def check_shapes(saved: PyTree, expected: PyTree | None) -> None:
    """Raise an error about arrays that do not fit, or inflate beyond their shapes."""
    for fault in misfits(saved, expected).values() if expected is not None else ():
        raise MisfitError(fault)
    for path, leaf in by_path(saved).items():
        chunk = leaf.storage.chunk_shape if leaf.storage else ()
        if math.prod(chunk or ()) > max(math.prod(leaf.shape), 1):
            raise ValueError(f"{show(path)} has shape {leaf.shape} in pieces of {chunk}")


def _check_total(name: str, saved: PyTree) -> None:
    """Raise an error about more arrays than those of the largest model, and Adam's of it."""
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(saved))
    limit = MAX_WEIGHTS if name in ("params", "masks") else 2 * MAX_WEIGHTS
    if total > limit:
        raise MisfitError(f"{total} numbers; expected at most {limit}")


def plain_item(name: str, tree: PyTree) -> dict[str, Any]:
    """Return params and masks unchanged, other trees as dicts by leaf number."""
    if name in ("params", "masks"):
        return tree
    return {f"{i:05d}": leaf for i, leaf in enumerate(jax.tree.leaves(tree))}


def crc32(tree: PyTree) -> int:
    """Return a checksum of the values of all leaves."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        total = zlib.crc32(np.ascontiguousarray(leaf), total)
    return total


def crc32_of_json(meta: Mapping[str, Any]) -> int:
    """Checksum of `meta` but for that checksum itself, as it is after a round trip."""
    checksums = {name: value for name, value in meta["crc32"].items() if name != "meta"}
    fields = json.loads(json.dumps({**meta, "crc32": checksums}))
    return zlib.crc32(json.dumps(fields, sort_keys=True).encode())
