"""Tensors of PyTorch checkpoints: their dtypes, inert descriptions, and the arrays these become."""

import dataclasses
import math
import reprlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from sparsecap_jax.errors import CheckpointError

MAX_UNSTORED = 2**28
"""Elements that the tensors of one file may have beyond those stored in it (zeros of sparse
tensors, repeats of expanded ones): 1 GiB in float32, five times the largest model of the papers."""

_MAX_DEPTH = 32
_MAX_RANK = 32
_MAX_NUMEL = 2**40  # keeps sizes in bytes far inside numpy's range

UNTYPED = "untyped"

_NAMES = """
    float16 float32 float64 bfloat16 float8_e4m3fn float8_e5m2 int8 int16 int32 int64 uint8 uint16
    uint32 uint64 bool complex64 complex128
"""
DTYPES = {name: np.dtype(getattr(ml_dtypes, name, name)) for name in _NAMES.split()}
"""PyTorch's names of dtypes and what they are in numpy; all little-endian."""

STORAGES: dict[str, str] = {
    "HalfStorage": "float16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "BFloat16Storage": "bfloat16",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
"""PyTorch's storage classes and the dtype of their elements."""


class StorageRef(NamedTuple):
    """A run of `numel` elements stored under `key`; dtype `untyped` counts bytes."""

    key: str
    dtype: str
    numel: int

    @property
    def nbytes(self) -> int:
        """Size in bytes that the pickle claims."""
        return self.numel * (1 if self.dtype == UNTYPED else DTYPES[self.dtype].itemsize)


class TensorRef(NamedTuple):
    """A strided view of a storage; offset and strides count elements."""

    storage: StorageRef
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class SparseRef(NamedTuple):
    """A COO tensor: indices `[sparse dims, nnz]` and values `[nnz, ...]`."""

    indices: TensorRef
    values: TensorRef
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class SparseTensor:
    """A sparse tensor in coordinate (COO) form; entries of equal index add up.

    Attributes:
        indices: int64 `[n, nnz]`, one column per entry, for the first n dimensions.
        values: `[nnz]`, or `[nnz, ...]` when the dimensions after the first n are dense.
        shape: sizes of the dense tensor.
    """

    indices: np.ndarray
    values: np.ndarray
    shape: tuple[int, ...]

    @classmethod
    def from_dense(cls, array: np.ndarray) -> "SparseTensor":
        """Keep the nonzeros of `array` (at least one dimension), in row-major order."""
        where = np.nonzero(array)
        return cls(np.stack(where).astype(np.int64), array[where], array.shape)

    def to_dense(self) -> np.ndarray:
        """Return the dense array `[*shape]`, of the values' dtype."""
        dense = np.zeros(self.shape, self.values.dtype)
        np.add.at(dense, tuple(self.indices), self.values)
        return dense


class TensorBuilder:
    """Puts read-only arrays and `SparseTensor` in place of the descriptions of tensors.

    Raises a CheckpointError where a tensor reaches beyond its storage, a sparse one is
    inconsistent, or the tensors together claim over `MAX_UNSTORED` elements too many.

    Args:
        storages: the bytes of every storage, as many as its description claims; tensors share them.
    """

    def __init__(self, storages: Mapping[str, bytes]):
        self.storages, self.unstored = storages, 0
        self.built: dict[int, Any] = {}  # a pickle can name one container many times over

    def build(self, node: Any, path: str = "", depth: int = 0) -> Any:
        """Build dicts, lists and tuples of `TensorRef`, `SparseRef` and plain values."""
        if depth > _MAX_DEPTH:
            raise _error(path, f"nested deeper than {_MAX_DEPTH}")
        if id(node) in self.built:
            return self.built[id(node)]
        value: Any
        match node:
            case TensorRef():
                value = self._tensor(node, path)
            case SparseRef():
                value = self._sparse(node, path)
            case dict():
                value = {k: self.build(v, f"{path}.{k}", depth + 1) for k, v in node.items()}
            case list() | tuple() if type(node) in (list, tuple):
                value = type(node)(self.build(v, path, depth + 1) for v in node)
            case str() | bytes() | int() | float() | None:
                value = node
            case _:
                raise _error(path, f"a {type(node).__name__} is neither tensor nor plain value")
        self.built[id(node)] = value
        return value

    def _tensor(self, ref: TensorRef, path: str) -> np.ndarray:
        _check_shape(ref.shape, path)
        dtype = DTYPES[ref.dtype]
        stored = ref.storage.nbytes // dtype.itemsize
        numel = math.prod(ref.shape)
        if numel == 0:
            return np.zeros(ref.shape, dtype)
        sizes = list(zip(ref.shape, ref.strides, strict=True))
        last = sum((n - 1) * s for n, s in sizes)
        if ref.offset + last >= stored:
            view = f"shape {ref.shape} with strides {ref.strides} at offset {ref.offset}"
            raise _error(path, f"{view} reaches beyond its storage of {stored} elements")
        self._claim(numel - stored, path)
        data = self.storages[ref.storage.key]
        # the stride of a single element is free, and may be out of numpy's range
        strides = [s * dtype.itemsize if n > 1 else 0 for n, s in sizes]
        return np.ndarray(ref.shape, dtype, data, ref.offset * dtype.itemsize, strides)

    def _sparse(self, ref: SparseRef, path: str) -> SparseTensor:
        _check_shape(ref.shape, path)
        indices, values = self._tensor(ref.indices, path), self._tensor(ref.values, path)
        rank = len(indices) if indices.ndim == 2 else 0
        sizes, dense = ref.shape[:rank], ref.shape[rank:]
        if indices.dtype != np.int64 or not 1 <= rank <= len(ref.shape):
            kind = f"{indices.dtype} indices of shape {indices.shape}"
            raise _error(path, f"{kind} for a sparse tensor of shape {ref.shape}")
        if values.shape != (indices.shape[1], *dense):
            raise _error(path, f"values {values.shape} for indices {indices.shape}")
        self._claim(math.prod(ref.shape) - values.size, path)
        if np.any(indices < 0) or np.any(indices >= np.array(sizes, np.int64)[:, None]):
            raise _error(path, f"indices out of range of shape {ref.shape}")
        return SparseTensor(indices, values, ref.shape)

    def _claim(self, elements: int, path: str):
        self.unstored += max(elements, 0)
        if self.unstored > MAX_UNSTORED:
            raise _error(path, f"tensors claim over {MAX_UNSTORED} elements not in the file")


def _check_shape(shape: tuple[int, ...], path: str):
    if len(shape) > _MAX_RANK or math.prod(max(n, 1) for n in shape) > _MAX_NUMEL:
        raise _error(path, f"shape {reprlib.repr(shape)} is too large")


def _error(path: str, message: str) -> CheckpointError:
    return CheckpointError(f"{path.lstrip('.') or 'top level'}: {message}")
