"""PyTorch checkpoint files (`.pth`) read and written without PyTorch.

Both formats are read: the zip archive of PyTorch 1.6 and later, and the stream of pickles before
it. Nothing in a file is executed, see `torch_pickle.py`; every size it claims is checked against
the bytes that are there before memory is taken.
"""

import io
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.files import write_atomically
from sparsecap_jax.torch_files.torch_pickle import Call, Global, Persistent, dump_dict, load_inert
from sparsecap_jax.torch_files.torch_tensors import (
    DTYPES,
    STORAGES,
    SparseTensor,
    StorageRef,
    build_tensors,
)
from sparsecap_jax.types import ArrayLike

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_ALIGNMENT = 64

BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    OverflowError,
    RuntimeError,  # also NotImplementedError
    ValueError,
)
"""What `zipfile` and `struct` raise for broken input."""


def read_torch_file(
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
    if isinstance(file, str | os.PathLike):
        name = name or os.fspath(file)
        try:
            with open(file, "rb") as stream:
                return _read(stream, name)
        except OSError as error:
            raise CheckpointError(f"{name}: cannot be read: {error.strerror}") from error
    return _read(file, name or str(getattr(file, "name", "<checkpoint>")))


def _read(stream: io.BufferedIOBase, source: str) -> dict[str, Any]:
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    is_zip = stream.read(4) == b"PK\x03\x04"
    stream.seek(0)
    try:
        tree, storages = (_read_zip if is_zip else _read_legacy)(stream, size, source)
    except CheckpointError:
        raise
    except BROKEN as error:
        raise CheckpointError(f"{source}: truncated or corrupt PyTorch file: {error!r}") from error
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        found = type(tree).__name__
        raise CheckpointError(f"{source}: holds a {found}; expected a dict of named tensors")
    return build_tensors(tree, storages, source)


def _check_claims(refs: Mapping[str, StorageRef], size: int, source: str):
    """Storages are stored uncompressed and once, so together they fit into the file."""
    claimed = sum(ref.nbytes for ref in refs.values())
    if claimed > size:
        raise CheckpointError(
            f"{source}: claims {claimed} bytes of tensors, but the file has only {size}"
        )


def _read_zip(stream: io.BufferedIOBase, size: int, source: str) -> tuple[Any, dict[str, bytes]]:
    with zipfile.ZipFile(stream) as archive:
        names = archive.namelist()
        roots = [name[: -len("data.pkl")] for name in names if name.endswith("/data.pkl")]
        if len(roots) != 1 or roots[0] + "constants.pkl" in names:
            raise CheckpointError(
                f"{source}: a zip archive, but not one that torch.save wrote (expected exactly "
                "one data.pkl and no TorchScript code)"
            )
        root = roots[0]
        if root + "byteorder" in names and _member(archive, root + "byteorder") != b"little":
            raise CheckpointError(f"{source}: byteorder: expected little")
        tree, refs = load_inert(io.BytesIO(_member(archive, root + "data.pkl")), source)
        _check_claims(refs, size, source)
        storages = {}
        for key, ref in refs.items():
            if f"{root}data/{key}" not in names:
                raise CheckpointError(f"{source}: data/{key}: missing")
            data = storages[key] = _member(archive, f"{root}data/{key}")
            if len(data) != ref.nbytes:
                raise CheckpointError(
                    f"{source}: data/{key}: has {len(data)} bytes, expected {ref.nbytes}"
                )
    return tree, storages


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Read one member; torch.save never compresses, so a compressed one may be a zip bomb."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        raise zipfile.BadZipFile(f"{name} is compressed; torch.save stores without compression")
    return archive.read(info)


def _read_legacy(stream: io.BufferedIOBase, size: int, source: str) -> tuple[Any, dict[str, bytes]]:
    stream = io.BytesIO(stream.read())
    if stream.getvalue()[:1] != b"\x80":
        raise CheckpointError(f"{source}: not a PyTorch file (neither a zip archive nor a pickle)")
    if load_inert(stream, source)[0] != _LEGACY_MAGIC:
        raise CheckpointError(f"{source}: a pickle, but not one that torch.save wrote")
    version, system = (load_inert(stream, source)[0] for _ in range(2))
    little = isinstance(system, dict) and system.get("little_endian") is True
    if version != _LEGACY_PROTOCOL or not little:
        raise CheckpointError(
            f"{source}: expected protocol {_LEGACY_PROTOCOL} on a little-endian machine"
        )
    tree, refs = load_inert(stream, source)
    keys = load_inert(stream, source)[0]
    _check_claims(refs, size, source)
    if not isinstance(keys, list) or {*map(str, keys)} != {*refs} or len(keys) != len(refs):
        raise CheckpointError(f"{source}: its list of storages does not match its tensors")
    storages = {}
    for key in keys:
        (numel,) = struct.unpack("<q", stream.read(8))
        data = storages[key] = stream.read(refs[key].nbytes)
        if numel != refs[key].numel or len(data) != refs[key].nbytes:
            raise CheckpointError(
                f"{source}: storage {key}: has {numel} elements and {len(data)} bytes, "
                f"expected {refs[key].numel} and {refs[key].nbytes}"
            )
    return tree, storages


def write_torch_file(
    path: str | os.PathLike, state_dict: Mapping[str, ArrayLike | SparseTensor]
) -> None:
    """Write arrays as a zip-format checkpoint that `torch.load(path, weights_only=True)` reads.

    The file appears whole or not at all, and is the same for the same input. One array under
    several names (shared layers) is stored once and shared again by PyTorch.

    Args:
        path: file to write; an existing one is replaced.
        state_dict: names and their tensors, dense `[*shape]` or sparse COO.

    Raises:
        CheckpointError: a dtype that PyTorch storages do not have, or the file cannot be written.
    """
    writer = _Writer(os.fspath(path))
    tree = dump_dict([(key, writer.value(key, value)) for key, value in state_dict.items()])
    members = {"data.pkl": tree, "byteorder": b"little"}
    members |= {f"data/{index}": data for index, data in enumerate(writer.storages)}
    members["version"] = b"3\n"
    try:
        with write_atomically(path, "wb") as file, zipfile.ZipFile(file, "w") as archive:
            for name, data in members.items():
                archive.writestr(_aligned(f"archive/{name}", file.tell()), data)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}") from error


def _aligned(name: str, offset: int) -> zipfile.ZipInfo:
    """Header of a member whose data starts at a multiple of 64 bytes, as torch.load(mmap) likes."""
    info = zipfile.ZipInfo(name)
    header = 30 + len(name.encode()) + 4  # fixed part, name, head of the padding field
    padding = -(offset + header) % _ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    return info


class _Writer:
    """Describes tensors for `dump_dict` and gathers the bytes of their storages."""

    def __init__(self, source: str):
        self.source = source
        self.storages: list[memoryview] = []
        self.described: dict[int, tuple[Any, Call]] = {}  # holds the array, so that ids stay valid

    def value(self, key: str, value: Any) -> Call:
        if id(value) not in self.described:
            call = self.sparse(key, value) if isinstance(value, SparseTensor) else None
            self.described[id(value)] = value, call or self.dense(key, np.asarray(value))
        return self.described[id(value)][1]

    def dense(self, key: str, array: np.ndarray) -> Call:
        storage = _STORAGE_OF.get(array.dtype.newbyteorder("="))
        if storage is None:
            known = ", ".join(sorted(STORAGES.values()))
            raise CheckpointError(
                f"{self.source}: {key}: dtype {array.dtype} cannot be written (expected {known})"
            )
        array = array.astype(array.dtype.newbyteorder("="), order="C", copy=False)
        index = str(len(self.storages))
        self.storages.append(memoryview(array.reshape(-1).view(np.uint8)))
        pid = ("storage", Global("torch", storage), index, "cpu", array.size)
        strides = tuple(math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim))
        hooks = Call(Global("collections", "OrderedDict"), ())
        return Call(
            Global("torch._utils", "_rebuild_tensor_v2"),
            (Persistent(pid), 0, array.shape, strides, False, hooks),
        )

    def sparse(self, key: str, tensor: SparseTensor) -> Call:
        layout = Call(Global("torch.serialization", "_get_layout"), ("torch.sparse_coo",))
        size = Call(Global("torch", "Size"), (tuple(map(int, tensor.shape)),))
        indices = self.dense(key, np.asarray(tensor.indices, np.int64))
        data = (indices, self.dense(key, np.asarray(tensor.values)), size)
        return Call(Global("torch._utils", "_rebuild_sparse_tensor"), (layout, data))


_STORAGE_OF = {DTYPES[dtype]: name for name, dtype in STORAGES.items()}
