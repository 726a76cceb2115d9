"""The pickles inside PyTorch checkpoints: read without running them, and written.

A pickle is a program. Two fences keep the programs met here from doing anything but describing
tensors: only the instructions that PyTorch itself writes are let through, and every global they
name must be one of `_GLOBALS`, which maps it to an immutable function of this file that returns
an inert description. The bytes of the tensors are read afterwards, by `torch_file.py`.
"""

import io
import pickle
import pickletools
import reprlib
import struct
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.torch_files.torch_tensors import (
    DTYPES,
    STORAGES,
    UNTYPED,
    SparseRef,
    StorageRef,
    TensorRef,
)


class _Inert(NamedTuple):
    """A callable whose attributes a pickle cannot set."""

    function: Callable

    def __call__(self, *args):
        return self.function(*args)


class _OrderedDict(dict):
    """A dict that drops the attributes a pickle would set on it, such as `_metadata`."""

    __slots__ = ()

    def __setstate__(self, state):
        """Ignore `state`."""


def _sizes(values: Any) -> tuple[int, ...]:
    if type(values) not in (tuple, list) or any(type(v) is not int or v < 0 for v in values):
        raise ValueError(f"{reprlib.repr(values)} is not a tuple of sizes")
    return tuple(values)


def _tensor(storage, offset, shape, strides, *_):
    if type(storage) is not StorageRef or storage.dtype == UNTYPED:
        raise ValueError("a tensor without a typed storage")
    return _tensor_of(storage, storage.dtype, offset, shape, strides)


def _tensor_v2(storage, offset, shape, strides, requires_grad, hooks, metadata=None):
    if metadata:
        raise ValueError(f"tensor metadata {reprlib.repr(metadata)}, which is not supported")
    return _tensor(storage, offset, shape, strides)


def _tensor_v3(storage, offset, shape, strides, requires_grad, hooks, dtype, metadata=None):
    if type(storage) is not StorageRef or dtype not in DTYPES or metadata:
        raise ValueError("a tensor with an unknown storage, dtype or metadata")
    return _tensor_of(storage, dtype, offset, shape, strides)


def _tensor_of(storage, dtype, offset, shape, strides):
    shape, strides, (offset,) = _sizes(shape), _sizes(strides), _sizes((offset,))
    if len(shape) != len(strides):
        raise ValueError(f"a tensor with {len(shape)} sizes but {len(strides)} strides")
    return TensorRef(storage, dtype, offset, shape, strides)


def _parameter(data, *_):
    if type(data) not in (TensorRef, SparseRef):
        raise ValueError("a parameter that is not a tensor")
    return data


def _sparse_tensor(layout, data):
    if layout != "torch.sparse_coo":
        raise ValueError(f"layout {reprlib.repr(layout)}; only torch.sparse_coo is supported")
    indices, values, shape = data[:3]
    if type(indices) is not TensorRef or type(values) is not TensorRef:
        raise ValueError("a sparse tensor without indices or values")
    return SparseRef(indices, values, _sizes(shape))


def _encoded(text, encoding):
    if encoding != "latin1":
        raise ValueError(f"bytes encoded as {reprlib.repr(encoding)}")
    return text.encode("latin1")


_GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Inert(_OrderedDict),
    ("torch._utils", "_rebuild_tensor"): _Inert(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Inert(_tensor_v2),
    ("torch._utils", "_rebuild_tensor_v3"): _Inert(_tensor_v3),
    ("torch._utils", "_rebuild_parameter"): _Inert(_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): _Inert(_parameter),
    ("torch._utils", "_rebuild_sparse_tensor"): _Inert(_sparse_tensor),
    ("torch.serialization", "_get_layout"): _Inert(lambda layout: layout),
    ("torch", "Size"): _Inert(_sizes),
    ("torch.storage", "UntypedStorage"): UNTYPED,
    ("_codecs", "encode"): _Inert(_encoded),  # how protocol 2 writes bytes
    **{("torch", name): dtype for name, dtype in STORAGES.items()},
    **{("torch", name): name for name in DTYPES},
}

# The last four make objects: they get no further than `find_class`, which says of what class.
_OPCODES = frozenset(
    """
    PROTO FRAME STOP MARK POP POP_MARK GLOBAL STACK_GLOBAL REDUCE BUILD BINPERSID MEMOIZE BINPUT
    LONG_BINPUT BINGET LONG_BINGET NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 LONG4
    BINFLOAT SHORT_BINSTRING BINSTRING BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES
    SHORT_BINBYTES BINBYTES8 EMPTY_DICT EMPTY_LIST EMPTY_TUPLE APPEND APPENDS SETITEM SETITEMS
    TUPLE TUPLE1 TUPLE2 TUPLE3 NEWOBJ NEWOBJ_EX OBJ INST
    """.split()  # noqa: SIM905 - fifty quoted names would hide what is let through
)


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, source: str):
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self.source = source
        self.storages: dict[str, StorageRef] = {}

    def find_class(self, module, name):
        try:
            return _GLOBALS[module, name]
        except KeyError:
            raise CheckpointError(
                f"{self.source}: its pickle asks for the global '{module}.{name}', which a state "
                "dict of tensors never needs; nothing was executed. Expected a file written by "
                "torch.save(model.state_dict(), ...)"
            ) from None

    def persistent_load(self, pid):
        if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage":
            raise ValueError(f"a persistent id {reprlib.repr(pid)} that is no storage")
        _, dtype, key, _device, numel = pid[:5]
        known = type(dtype) is str and (dtype == UNTYPED or dtype in DTYPES)
        if not known or type(key) is not str or type(numel) is not int or numel < 0:
            raise ValueError(f"a storage {reprlib.repr(pid)} of unknown type or size")
        if pid[5:] not in ((), (None,)):
            raise ValueError("a storage that is a view of another (PyTorch 0.1)")
        ref = StorageRef(key, dtype, numel)
        if self.storages.setdefault(key, ref) != ref:
            raise ValueError(f"two different claims about storage {key!r}")
        return ref


def load_inert(stream: io.BufferedIOBase, source: str) -> tuple[Any, dict[str, StorageRef]]:
    """Read one pickle from `stream` without executing any of it.

    Args:
        stream: open at the start of a pickle; left right behind it.
        source: name of the file, for messages.

    Returns:
        What the pickle describes, built of dicts, lists, tuples, plain values, `TensorRef` and
        `SparseRef`; and the storages it refers to, by key.

    Raises:
        CheckpointError: truncated or corrupt, or it asks for more than a state dict needs.
    """
    start = stream.tell()
    try:
        check_opcodes(stream, _OPCODES)
        end = stream.tell()
        stream.seek(start)
        unpickler = _Unpickler(stream.read(end - start), source)
        return unpickler.load(), unpickler.storages
    except CheckpointError:
        raise
    except Exception as error:  # whatever foreign bytes provoke, they are not a state dict
        raise CheckpointError(f"{source}: not a readable state dict: {error}") from error


def check_opcodes(stream: io.BufferedIOBase, allowed: frozenset[str]) -> None:
    """Walk over one pickle without running it, and leave the stream behind it.

    Raises:
        ValueError: an instruction that is not `allowed`, or a memo slot beyond the pickle's length.
    """
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if opcode.name not in allowed:
            raise ValueError(f"pickle instruction {opcode.name}, which no such file needs")
        if opcode.name == "LONG_BINPUT" and argument > count:
            raise ValueError("a memo slot out of range")


class Global(NamedTuple):
    """A name to be written as a global."""

    module: str
    name: str


class Call(NamedTuple):
    """A call of a global to be written."""

    function: Global
    args: tuple


class Persistent(NamedTuple):
    """A persistent id to be written."""

    pid: tuple


def dump_dict(items: Iterable[tuple[str, Any]]) -> bytes:
    """Write a protocol 2 pickle of a dict with values made of `Call`, ints, text and tuples."""
    body = b"".join(_encode(key) + _encode(value) for key, value in items)
    return b"\x80\x02}(" + body + b"u."


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
