"""`.npy` and `.npz`: sizes are checked before memory is taken, nothing is unpickled."""

import functools
import io
import math
import os
import pathlib
import zipfile
import zlib
from tokenize import TokenError
from typing import Any

import numpy as np

from sparsecap_jax.data.records import data_error
from sparsecap_jax.errors import DataError

_MAX_HEADER = 10_000  # bytes, numpy's own limit
_KINDS = {"f": "float16, float32 or float64", "iu": "integers"}


def to_npy(array: np.ndarray) -> bytes:
    """Return the content of a `.npy` file; `np.save` itself hides why a file cannot be written."""
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


@functools.lru_cache(maxsize=4096)
def _parse_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Parse a `.npy` header; folders hold few different ones, and parsing is as slow as reading."""
    file = io.BytesIO(header)
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"format version {version}")


def _read_header(
    file: Any, size: int, where: str, kind: str = "f"
) -> tuple[tuple[int, ...], str, np.dtype]:
    """Read shape, order ("C" or "F") and dtype of a `.npy` file of `size` bytes, up to its data.

    DataError where the dtype is not of `kind` ("f": floats, "iu": integers), or the size is wrong.
    """
    if not size:
        raise DataError(f"{where}: the file is empty, expected a .npy array")
    start = file.read(12)
    prefix = 10 if start[6:7] == b"\1" else 12  # since version 2 the length takes four bytes
    length = prefix + int.from_bytes(start[8:prefix], "little")
    header = (start + file.read(min(max(length, 12), _MAX_HEADER) - len(start)))[:length]
    faults = ValueError, TypeError, SyntaxError, RecursionError, MemoryError, TokenError
    with data_error(f"{where}: not a .npy array", *faults):
        shape, fortran, dtype = _parse_header(header)
    if dtype.kind not in kind or dtype.itemsize > 8 or min(shape, default=0) < 0:
        expected = f"expected an array of {_KINDS[kind]}"
        raise DataError(f"{where}: {expected}, found {dtype} {list(shape)}")
    expected, found = math.prod(shape) * dtype.itemsize, size - length
    if found != expected:
        problem = "truncated" if found < expected else "too long"
        raise DataError(
            f"{where}: {problem}: an array {list(shape)} of {dtype} takes {expected} bytes, "
            f"found {found}"
        )
    return shape, "F" if fortran else "C", dtype


def npy_shape(path: pathlib.Path) -> tuple[int, ...]:
    """Return the shape of a floating `.npy` array, from its header."""
    with data_error(f"{path}: cannot be read", OSError), path.open("rb") as file:
        return _read_header(file, os.fstat(file.fileno()).st_size, str(path))[0]


def read_npy(path: pathlib.Path) -> np.ndarray:
    """Read a floating `.npy` array, whose size is checked before memory is taken for it."""
    with data_error(f"{path}: cannot be read", OSError), path.open("rb") as file:
        shape, order, dtype = _read_header(file, os.fstat(file.fileno()).st_size, str(path))
        return np.fromfile(file, dtype).reshape(shape, order=order)


def parse_npy(content: bytes, where: str) -> np.ndarray:
    """Return the floating array in the bytes of a `.npy` file."""
    file = io.BytesIO(content)
    shape, order, dtype = _read_header(file, len(content), where)
    return np.frombuffer(content, dtype, offset=file.tell()).reshape(shape, order=order)


class Npz:
    """Members of an `.npz` archive, read one by one.

    Args:
        source: path, or the bytes of the archive.
        where: name of the bytes, for errors.
    """

    def __init__(self, source: pathlib.Path | bytes, where: str = ""):
        self.where = where or str(source)
        faults = OSError, zipfile.BadZipFile, ValueError, NotImplementedError
        with data_error(f"{self.where}: not an .npz archive", *faults):
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            self._archive = zipfile.ZipFile(file)

    def __enter__(self) -> "Npz":
        return self

    def __exit__(self, *error) -> None:
        self._archive.close()

    def names(self) -> list[str]:
        """Return the names of the arrays."""
        return [name.removesuffix(".npy") for name in self._archive.namelist()]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a floating array, from its header."""
        return self._read(name, "f", data=False).shape

    def __getitem__(self, name: str) -> np.ndarray:
        """Read a floating array."""
        return self._read(name, "f")

    def number(self, name: str) -> int:
        """Read a single integer."""
        array = self._read(name, "iu")
        if array.size != 1:
            raise DataError(f"{self.where}: {name}: expected one number, found {array.shape}")
        return int(array.reshape(()))

    def _read(self, name: str, kind: str, data: bool = True) -> np.ndarray:
        where = f"{self.where}: {name}"
        if name not in self.names():
            names = ", ".join(self.names()[:10])
            raise DataError(f"{where}: no such array, found {names}")
        faults = OSError, RuntimeError, zipfile.BadZipFile, zlib.error, ValueError, KeyError
        with data_error(f"{where}: cannot be read", *faults):
            info = self._archive.getinfo(f"{name}.npy")
            with self._archive.open(info) as file:
                shape, order, dtype = _read_header(file, info.file_size, where, kind)
                if not data:
                    return np.broadcast_to(np.zeros((), dtype), shape)
                content = file.read(info.file_size + 1)
        if len(content) != math.prod(shape) * dtype.itemsize:
            raise DataError(f"{where}: truncated: {len(content)} bytes of data")
        return np.frombuffer(content, dtype).reshape(shape, order=order)
