"""Reading `.npy` and `.npz`: sizes are checked before memory is taken, nothing is unpickled."""

import functools
import io
import math
import os
import pathlib
import zipfile
import zlib
from tokenize import TokenError
from typing import Any, BinaryIO

import numpy as np

from sparsecap_jax.errors import DataError

_MAX_HEADER = 10_000  # bytes, numpy's own limit
_KINDS = {"f": "float16, float32 or float64", "iu": "integers"}


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


def read_header(
    file: Any, size: int, where: str, kind: str = "f"
) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the header of a `.npy` file; DataError where dtype or size is not as expected.

    Args:
        file: readable, at its beginning; left at the first byte of data.
        size: bytes of the file.
        where: its name, for errors.
        kind: "f" for floating arrays, "iu" for integers.

    Returns:
        Shape, whether in Fortran order, dtype.
    """
    if not size:
        raise DataError(f"{where}: the file is empty, expected a .npy array")
    start = file.read(12)
    prefix = 10 if start[6:7] == b"\1" else 12  # since version 2 the length takes four bytes
    length = prefix + int.from_bytes(start[8:prefix], "little")
    header = (start + file.read(min(max(length, 12), _MAX_HEADER) - len(start)))[:length]
    try:
        shape, fortran, dtype = _parse_header(header)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError, TokenError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{where}: not a .npy array: {reason}") from None
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
    return shape, fortran, dtype


def open_file(path: pathlib.Path) -> BinaryIO:
    """Open a file for reading bytes; an OSError becomes a DataError."""
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def npy_shape(path: pathlib.Path) -> tuple[int, ...]:
    """Return the shape of a floating `.npy` array, from its header."""
    with open_file(path) as file:
        return read_header(file, os.fstat(file.fileno()).st_size, str(path))[0]


def read_npy(path: pathlib.Path) -> np.ndarray:
    """Read a floating `.npy` array, whose size is checked before memory is taken for it."""
    with open_file(path) as file:
        shape, fortran, dtype = read_header(file, os.fstat(file.fileno()).st_size, str(path))
        return np.fromfile(file, dtype).reshape(shape, order="F" if fortran else "C")


def parse_npy(content: bytes, where: str) -> np.ndarray:
    """Return the floating array in the bytes of a `.npy` file."""
    file = io.BytesIO(content)
    shape, fortran, dtype = read_header(file, len(content), where)
    data = np.frombuffer(content, dtype, offset=file.tell())
    return data.reshape(shape, order="F" if fortran else "C")


class Npz:
    """Members of an `.npz` archive, read one by one.

    Args:
        source: path, or the bytes of the archive.
        where: name of the bytes, for errors.
    """

    def __init__(self, source: pathlib.Path | bytes, where: str = ""):
        where = self.where = where or str(source)
        try:
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            self._archive = zipfile.ZipFile(file)
        except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            empty = not isinstance(source, bytes) and source.is_file() and not source.stat().st_size
            reason = "the file is empty" if empty else (str(error) or type(error).__name__)
            raise DataError(f"{where}: not an .npz archive: {reason}") from None

    def __enter__(self) -> "Npz":
        return self

    def __exit__(self, *error) -> None:
        self._archive.close()

    def names(self) -> list[str]:
        """Return the names of the arrays."""
        return [name.removesuffix(".npy") for name in self._archive.namelist()]

    def shape(self, name: str, kind: str = "f") -> tuple[int, ...]:
        """Return the shape of an array, from its header."""
        return self._read(name, kind, data=False).shape

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
        try:
            info = self._archive.getinfo(f"{name}.npy")
        except KeyError:
            names = ", ".join(self.names()[:10])
            raise DataError(f"{where}: no such array, found {names}") from None
        try:
            with self._archive.open(info) as file:
                shape, fortran, dtype = read_header(file, info.file_size, where, kind)
                if not data:
                    return np.broadcast_to(np.zeros((), dtype), shape)
                content = file.read(info.file_size + 1)
        except DataError:
            raise
        except (OSError, RuntimeError, zipfile.BadZipFile, zlib.error, ValueError) as error:
            raise DataError(f"{where}: cannot be read: {error}") from None
        if len(content) != math.prod(shape) * dtype.itemsize:
            raise DataError(f"{where}: truncated: {len(content)} bytes of data")
        return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
