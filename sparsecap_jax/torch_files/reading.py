"""PyTorch checkpoint files (`.pth`), read without PyTorch.

Both formats are read: the zip archive of PyTorch 1.6 and later, and the stream of pickles before
it. Nothing in a file is executed, see `pickles.py`. Every size that a file claims is checked
against the bytes that it has before memory is allocated.
"""

import contextlib
import io
import os
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.files import foreign_errors, open_regular
from sparsecap_jax.torch_files.pickles import load_inert
from sparsecap_jax.torch_files.tensors import StorageRef, TensorBuilder

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001

MAX_FILE_BYTES = 2**31
"""Size of a file that is read; the largest of the papers, with masks, has 0.45 GB."""


def load_torch_file(
    file: str | os.PathLike | io.BufferedIOBase, *, name: str | None = None
) -> dict[str, Any]:
    """Read a state dict that `torch.save` wrote, in either format, without PyTorch.

    Args:
        file: path, or a seekable binary file.
        name: what messages call the file; its path by default.

    Returns:
        The stored dict, its tensors and parameters as read-only numpy arrays `[*shape]` (bfloat16
        by `ml_dtypes`), sparse COO tensors as `SparseTensor`. Tensors that shared a storage share
        memory. Dicts (also ordered ones), lists and tuples of tensors and plain values may nest.

    Raises:
        CheckpointError: missing, truncated or corrupt, not a PyTorch file, holds anything but
            tensors and plain values, or claims more than it holds. Nothing is executed.
    """
    opened: Any
    try:
        if isinstance(file, str | os.PathLike):
            name = name or os.fspath(file)
            opened = open_regular(file)
        else:
            name = name or str(getattr(file, "name", "<checkpoint>"))
            opened = contextlib.nullcontext(file)
        with opened as stream:
            return _read(stream)
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{name}: cannot be read: {error.strerror}") from error


def _read(stream: io.BufferedIOBase) -> dict[str, Any]:
    size = stream.seek(0, io.SEEK_END)
    if size > MAX_FILE_BYTES:
        raise CheckpointError(f"{size} bytes; expected at most {MAX_FILE_BYTES}")
    stream.seek(0)
    is_zip = stream.read(4) == b"PK\x03\x04"
    stream.seek(0)
    with foreign_errors("truncated or corrupt PyTorch file", CheckpointError):
        tree, storages = (_read_zip if is_zip else _read_legacy)(stream, size)
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise CheckpointError(f"holds a {type(tree).__name__}; expected a dict of named tensors")
    return TensorBuilder(storages).build(tree)


def _check_claims(refs: Mapping[str, StorageRef], size: int):
    # Storages are stored uncompressed and once, so together they fit into the file.
    claimed = sum(ref.nbytes for ref in refs.values())
    if claimed > size:
        raise CheckpointError(f"claims {claimed} bytes of tensors, but the file has only {size}")


def _read_zip(stream: io.BufferedIOBase, size: int) -> tuple[Any, dict[str, bytes]]:
    with zipfile.ZipFile(stream) as archive:
        names = archive.namelist()
        roots = [name[: -len("data.pkl")] for name in names if name.endswith("/data.pkl")]
        if len(roots) != 1 or roots[0] + "constants.pkl" in names:
            raise CheckpointError(
                "a zip archive, but not one that torch.save wrote (expected exactly one data.pkl "
                "and no TorchScript code)"
            )
        root = roots[0]
        if root + "byteorder" in names and _member(archive, root + "byteorder") != b"little":
            raise CheckpointError("byteorder: expected little")
        tree, refs = load_inert(io.BytesIO(_member(archive, root + "data.pkl")))
        _check_claims(refs, size)
        storages = {}
        for key, ref in refs.items():
            if f"{root}data/{key}" not in names:
                raise CheckpointError(f"data/{key}: missing")
            data = storages[key] = _member(archive, f"{root}data/{key}")
            if len(data) != ref.nbytes:
                raise CheckpointError(f"data/{key}: has {len(data)} bytes, expected {ref.nbytes}")
    return tree, storages


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Read one member; torch.save never compresses, so a compressed one may be a zip bomb."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        raise zipfile.BadZipFile(f"{name} is compressed; torch.save stores without compression")
    return archive.read(info)


def _read_legacy(stream: io.BufferedIOBase, size: int) -> tuple[Any, dict[str, bytes]]:
    stream = io.BytesIO(stream.read())
    if stream.getvalue()[:1] != b"\x80":
        raise CheckpointError("not a PyTorch file (neither a zip archive nor a pickle)")
    if load_inert(stream)[0] != _LEGACY_MAGIC:
        raise CheckpointError("a pickle, but not one that torch.save wrote")
    version, system = (load_inert(stream)[0] for _ in range(2))
    little = isinstance(system, dict) and system.get("little_endian") is True
    if version != _LEGACY_PROTOCOL or not little:
        raise CheckpointError(f"expected protocol {_LEGACY_PROTOCOL} on a little-endian machine")
    tree, refs = load_inert(stream)
    keys = load_inert(stream)[0]
    _check_claims(refs, size)
    named = isinstance(keys, list) and all(type(key) is str for key in keys)
    if not named or sorted(keys) != sorted(refs):
        raise CheckpointError("its list of storages does not match its tensors")
    storages = {}
    for key in keys:
        (numel,) = struct.unpack("<q", stream.read(8))
        data = storages[key] = stream.read(refs[key].nbytes)
        if numel != refs[key].numel or len(data) != refs[key].nbytes:
            raise CheckpointError(
                f"storage {key}: has {numel} elements and {len(data)} bytes, "
                f"expected {refs[key].numel} and {refs[key].nbytes}"
            )
    return tree, storages
