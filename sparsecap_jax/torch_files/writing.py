"""PyTorch checkpoint files (`.pth`), written without PyTorch."""

import collections
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.files import write_atomically
from sparsecap_jax.torch_files.tensors import DTYPES, STORAGES, SparseTensor

_ALIGNMENT = 64
_STORAGE_OF = {DTYPES[dtype]: name for name, dtype in STORAGES.items()}


# What `dump_dict` writes along with plain values: a global, a call of one, and a persistent id.
Global = collections.namedtuple("Global", "module name")
Call = collections.namedtuple("Call", "function args")
Persistent = collections.namedtuple("Persistent", "pid")


def save_torch_file(path: str | os.PathLike, state_dict: Mapping[str, Any]) -> None:
    """Write arrays as a zip-format checkpoint that `torch.load(path, weights_only=True)` reads.

    The file appears whole or not at all, and is the same for the same input. One array under
    several names (shared layers) is stored once and shared again by PyTorch.

    Args:
        path: file to write; an existing one is replaced.
        state_dict: names and their tensors: arrays `[*shape]` or `SparseTensor`.

    Raises:
        CheckpointError: a dtype that PyTorch storages do not have, or the file cannot be written.
    """
    writer = _Writer(os.fspath(path))
    tree = dump_dict([(key, writer.value(key, value)) for key, value in state_dict.items()])
    members: dict[str, Any] = {"data.pkl": tree, "byteorder": b"little"}
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
        args = (Persistent(pid), 0, array.shape, strides, False, hooks)
        return Call(Global("torch._utils", "_rebuild_tensor_v2"), args)

    def sparse(self, key: str, tensor: SparseTensor) -> Call:
        layout = Call(Global("torch.serialization", "_get_layout"), ("torch.sparse_coo",))
        size = Call(Global("torch", "Size"), (tuple(map(int, tensor.shape)),))
        indices = self.dense(key, np.asarray(tensor.indices, np.int64))
        data = (indices, self.dense(key, np.asarray(tensor.values)), size)
        return Call(Global("torch._utils", "_rebuild_sparse_tensor"), (layout, data))


def dump_dict(items: Iterable[tuple[str, Any]]) -> bytes:
    """Write a protocol 2 pickle of a dict with values made of `Call`, ints, text and tuples."""
    return b"\x80\x02}(" + b"".join(_encode(part) for item in items for part in item) + b"u."


def _encode(value: Any) -> bytes:
    match value:
        case Global():
            return f"c{value.module}\n{value.name}\n".encode()
        case Call():
            return _encode(value.function) + _encode(value.args) + b"R"
        case Persistent():
            return _encode(value.pid) + b"Q"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            digits = pickle.encode_long(value)
            return b"\x8a" + bytes([len(digits)]) + digits
        case str():
            text = value.encode()
            return b"X" + struct.pack("<I", len(text)) + text
        case tuple():
            return b"(" + b"".join(map(_encode, value)) + b"t"
    raise TypeError(f"{type(value).__name__} is not written by dump_dict")
