"""Pickles of other programs, read without running them.

A pickle is a program. Three fences keep the programs met here from doing anything but describing
data: only the instructions that the original writers use are let through, a global is looked up in
a table of inert stand-ins, and dict keys are checked before any of them is hashed.
"""

import io
import pickle
import pickletools
import reprlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.torch_files.tensors import (
    DTYPES,
    STORAGES,
    UNTYPED,
    SparseRef,
    StorageRef,
    TensorRef,
)

_SCALAR_OPCODES = frozenset(
    """
    BININT BININT1 BININT2 LONG1 SHORT_BINSTRING BINSTRING BINUNICODE SHORT_BINUNICODE BINUNICODE8
    INT LONG STRING UNICODE SHORT_BINBYTES BINBYTES
    """.split()  # noqa: SIM905
)
_TUPLE_OPCODES = frozenset(["EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "TUPLE"])
_DICT_OPCODES = frozenset(["DICT", "SETITEM", "SETITEMS"])
_MAX_ARGUMENT = 2**24  # bytes of one text or number
_MAX_KEY_PARTS = 32  # a tuple is hashed anew, part by part, each time that it is a key
_MARK, _SCALAR, _FLAT, _OTHER = "mark", "text, bytes or integer", "tuple of these", "anything else"


def load_restricted(
    stream: io.BufferedIOBase,
    opcodes: frozenset[str],
    known: Mapping[tuple[str, str], Any],
    *,
    errors: str = "strict",
    persistent_load: Callable[[Any], Any] | None = None,
) -> Any:
    """Read one pickle without running anything but the entries of `known`.

    Args:
        stream: open at the start of a pickle; left right behind it.
        opcodes: the instructions that are let through.
        known: stand-ins for globals, by module and name.
        errors: what becomes of byte strings of Python 2 that are not UTF-8, as in `bytes.decode`.
        persistent_load: turns persistent ids into values; without it they are refused.

    Raises:
        ValueError: the pickle asks for more. Damaged ones also raise other exceptions.
    """
    start = stream.tell()
    _check_opcodes(stream, opcodes)
    length = stream.tell() - start
    stream.seek(start)
    unpickler = _Unpickler(io.BytesIO(stream.read(length)), encoding="utf-8", errors=errors)
    unpickler.known, unpickler.load_pid = known, persistent_load
    return unpickler.load()


class _Unpickler(pickle.Unpickler):
    known: Mapping[tuple[str, str], Any]
    load_pid: Callable[[Any], Any] | None

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.known:
            raise ValueError(f"it asks for the global '{module}.{name}'; nothing was executed")
        return self.known[module, name]

    def persistent_load(self, pid: Any) -> Any:
        if self.load_pid is None:
            raise ValueError("it asks for a persistent id")
        return self.load_pid(pid)


def _check_opcodes(stream: io.BufferedIOBase, allowed: frozenset[str]) -> None:
    """Walk over one pickle without running it, and leave the stream behind it.

    Nested tuples that share their parts take time exponential in their depth to hash, in C. The
    walk therefore follows what kind of value each place of the stack and of the memo holds.
    """
    stack: list[str] = []
    memo: dict[int, str] = {}
    for count, (opcode, argument) in enumerate(_instructions(stream)):
        name = opcode.name
        if name not in allowed:
            raise ValueError(f"pickle instruction {name}, which no such file needs")
        if name in ("GET", "BINGET", "LONG_BINGET"):
            if argument not in memo:
                raise ValueError(f"memo slot {argument} is empty")
            stack.append(memo[argument])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            slot = len(memo) if argument is None else argument
            if slot > count:
                raise ValueError("a memo slot out of range")
            (memo[slot],) = _take(stack, 1)
            stack.append(memo[slot])
        elif name in _SCALAR_OPCODES:
            stack.append(_SCALAR)
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "POP":
            del stack[-1:]
        else:
            before, values = opcode.stack_before, []
            if pickletools.markobject in before:
                if _MARK not in stack:
                    raise ValueError("the pickle lacks a mark")
                values = _take(stack, stack[::-1].index(_MARK))
                stack.pop()
                before = before[: before.index(pickletools.markobject)]
            values = _take(stack, len(before)) + values
            kind = _OTHER
            if name in _TUPLE_OPCODES:
                flat = len(values) <= _MAX_KEY_PARTS and values.count(_SCALAR) == len(values)
                kind = _FLAT if flat else _OTHER
            # All but DICT take the dict itself first.
            elif name in _DICT_OPCODES and not {*values[name != "DICT" :: 2]} <= {_SCALAR, _FLAT}:
                message = "a dict key that is neither text, an integer, nor a flat tuple of these"
                raise ValueError(message)
            stack += [kind] * len(opcode.stack_after)


class _Arguments(NamedTuple):
    """Reads arguments of instructions, none of them large: tensors lie outside of the pickle."""

    stream: io.BufferedIOBase

    def read(self, size: int) -> bytes:
        if size > _MAX_ARGUMENT:
            raise ValueError(f"an argument of {size} bytes")
        return self.stream.read(size)

    def readline(self) -> bytes:
        return self.stream.readline(_MAX_ARGUMENT)


def _instructions(stream: io.BufferedIOBase) -> Iterator[tuple[pickletools.OpcodeInfo, Any]]:
    """Yield instructions and arguments, as `pickletools.genops`, which wants byte strings ASCII."""
    arguments: Any = _Arguments(stream)
    name = ""
    while name != "STOP":
        code = stream.read(1).decode("latin1")
        if code not in pickletools.code2op:
            raise ValueError(f"{code!r} is no instruction of a pickle")
        opcode = pickletools.code2op[code]
        name = opcode.name
        if name == "STRING":
            yield opcode, pickletools.read_stringnl(arguments, decode=False)
        else:
            yield opcode, opcode.arg and opcode.arg.reader(arguments)


def _take(stack: list[str], count: int) -> list[str]:
    values = stack[len(stack) - count :]
    if len(stack) < count or _MARK in values:
        raise ValueError("the pickle takes more values than it holds")
    del stack[len(stack) - count :]
    return values


class Inert(NamedTuple):
    """A callable whose attributes a pickle cannot set."""

    function: Callable

    def __call__(self, *args: Any) -> Any:
        """Call the function."""
        return self.function(*args)


class _OrderedDict(dict):
    """A dict that drops the attributes a pickle would set on it, such as `_metadata`."""

    __slots__ = ()

    def __setstate__(self, state):
        """Ignore `state`."""


def _ordered_dict(pairs=()):
    """Make a dict; Python 2 hands over lists of a key and a value."""
    for pair in pairs:
        if type(pair) not in (list, tuple) or len(pair) != 2 or type(pair[0]) not in (str, int):
            raise ValueError("an OrderedDict of anything but pairs of a name and a value")
    return _OrderedDict(pairs)


def _sizes(values: Any) -> tuple[int, ...]:
    if type(values) not in (tuple, list) or any(type(v) is not int or v < 0 for v in values):
        raise ValueError(f"{reprlib.repr(values)} is not a tuple of sizes")
    return tuple(values)


def _tensor(storage, offset, shape, strides, requires_grad=False, hooks=None, metadata=None):
    dtype = getattr(storage, "dtype", UNTYPED)
    return _tensor_v3(storage, offset, shape, strides, requires_grad, hooks, dtype, metadata)


def _tensor_v3(storage, offset, shape, strides, requires_grad, hooks, dtype, metadata=None):
    if metadata:
        raise ValueError(f"tensor metadata {reprlib.repr(metadata)}, which is not supported")
    if type(storage) is not StorageRef or type(dtype) is not str or dtype not in DTYPES:
        raise ValueError("a tensor with an unknown storage or dtype")
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


def encoded(text: Any, encoding: Any) -> bytes:
    """Stand in for `_codecs.encode`, with which protocol 2 writes bytes."""
    if encoding != "latin1":
        raise ValueError(f"bytes encoded as {reprlib.repr(encoding)}")
    return text.encode("latin1")


_GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): Inert(_ordered_dict),
    ("torch._utils", "_rebuild_tensor"): Inert(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): Inert(_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): Inert(_tensor_v3),
    ("torch._utils", "_rebuild_parameter"): Inert(_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): Inert(_parameter),
    ("torch._utils", "_rebuild_sparse_tensor"): Inert(_sparse_tensor),
    ("torch.serialization", "_get_layout"): Inert(lambda layout: layout),
    ("torch", "Size"): Inert(_sizes),
    ("torch.storage", "UntypedStorage"): UNTYPED,
    ("_codecs", "encode"): Inert(encoded),
    **{("torch", name): dtype for name, dtype in STORAGES.items()},
    **{("torch", name): name for name in DTYPES},
}

# The last four make objects: they get no further than `find_class`, which names the class.
_OPCODES = frozenset(
    """
    PROTO FRAME STOP MARK POP POP_MARK GLOBAL STACK_GLOBAL REDUCE BUILD BINPERSID MEMOIZE BINPUT
    LONG_BINPUT BINGET LONG_BINGET NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 LONG4
    BINFLOAT SHORT_BINSTRING BINSTRING BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES
    SHORT_BINBYTES BINBYTES8 EMPTY_DICT EMPTY_LIST EMPTY_TUPLE APPEND APPENDS SETITEM SETITEMS
    TUPLE TUPLE1 TUPLE2 TUPLE3 NEWOBJ NEWOBJ_EX OBJ INST
    """.split()  # noqa: SIM905 - fifty quoted names would hide what is let through
)


def load_inert(stream: io.BufferedIOBase) -> tuple[Any, dict[str, StorageRef]]:
    """Read one pickle that PyTorch wrote, and the storages that it refers to, by key.

    The value consists of dicts, lists, tuples, plain values, `TensorRef` and `SparseRef`.

    Raises:
        CheckpointError: truncated or corrupt, or it asks for more than a state dict needs.
    """
    storages: dict[str, StorageRef] = {}

    def storage(pid: Any) -> StorageRef:
        if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage":
            raise ValueError(f"a persistent id {reprlib.repr(pid)} that is no storage")
        _, dtype, key, _device, numel = pid[:5]
        typed = type(dtype) is str and (dtype == UNTYPED or dtype in DTYPES)
        if not typed or type(key) is not str or type(numel) is not int or numel < 0:
            raise ValueError(f"a storage {reprlib.repr(pid)} of unknown type or size")
        if pid[5:] not in ((), (None,)):
            raise ValueError("a storage that is a view of another (PyTorch 0.1)")
        ref = StorageRef(key, dtype, numel)
        if storages.setdefault(key, ref) != ref:
            raise ValueError(f"two different claims about storage {key!r}")
        return ref

    try:
        return load_restricted(stream, _OPCODES, _GLOBALS, persistent_load=storage), storages
    except Exception as error:  # whatever foreign bytes provoke, they are not a state dict
        raise CheckpointError(
            f"not a readable state dict, which torch.save(model.state_dict(), ...) writes: {error}"
        ) from error
