"""`.npy` and `.npz`: sizes are checked before memory is taken, and nothing is unpickled.

No member of an archive is inflated beyond the size that its header states.
"""

import functools
import io
import math
import os
import pathlib
import zipfile
from typing import Any, NamedTuple

import numpy as np

from sparsecap_jax.errors import DataError, SparsecapError
from sparsecap_jax.files import foreign_errors, open_regular

MAX_BYTES = 2**31
"""Size of all arrays of an archive together; the largest model of the papers takes 0.22 GB."""

IMAGE_BYTES = 2**28
"""Size of an array of one image: 16,384 regions of 2,048 numbers in float64."""

_MAX_HEADER = 10_000  # bytes, numpy's own limit
_MAX_RANK = 32
_ITEM_BYTES = {"U": 4096}
_KINDS = {"f": "float16, float32 or float64", "iu": "integers", "u": "unsigned integers"}
_KINDS |= {"U": "text", "fiuU": "numbers or text"}


class Header(NamedTuple):
    """Shape, whether in the order of Fortran, and dtype of an array."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype

    def array(self, data: np.ndarray) -> np.ndarray:
        """Return the array of its numbers in the order of the file."""
        return data.reshape(self.shape, order="F" if self.fortran else "C")


def to_npy(array: np.ndarray) -> bytes:
    """Return the content of a `.npy` file; `np.save` itself hides why a file cannot be written."""
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def check_size(
    shape: tuple[int, ...],
    dtype: np.dtype,
    where: str,
    max_bytes: int = IMAGE_BYTES,
    error: type[SparsecapError] = DataError,
) -> None:
    """Raise `error` before memory is taken for an array of over `max_bytes`."""
    # Numpy multiplies the sizes of empty arrays too.
    if math.prod(max(n, 1) for n in shape) * dtype.itemsize > max_bytes:
        found = f"an array {list(shape)} of {dtype}"
        raise error(f"{where}: {found} takes over {max_bytes} bytes, more than is read")


@functools.lru_cache(maxsize=4096)
def _parse_header(header: bytes) -> Header:
    """Parse a `.npy` header; folders hold few different ones, and parsing is as slow as reading."""
    file = io.BytesIO(header)
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return Header(*np.lib.format.read_array_header_1_0(file))
    if version == (2, 0):
        return Header(*np.lib.format.read_array_header_2_0(file))
    raise ValueError(f"format version {version}")


def _read_header(
    file: Any,
    size: int,
    where: str,
    kinds: str = "f",
    max_bytes: int = IMAGE_BYTES,
    error: type[SparsecapError] = DataError,
) -> Header:
    """Read the header of a `.npy` file of `size` bytes, up to its data.

    Raises `error` where the dtype is not of `kinds`, or the size is another than stated.
    """
    if not size:
        raise error(f"{where}: the file is empty, expected a .npy array")
    start = file.read(12)
    prefix = 10 if start[6:7] == b"\1" else 12  # since version 2 the length takes four bytes
    length = prefix + int.from_bytes(start[8:prefix], "little")
    start += file.read(min(max(length, 12), _MAX_HEADER) - len(start))
    with foreign_errors(f"{where}: not a .npy array", error):
        header = _parse_header(start[:length])
        shape, _, dtype = header
        if any(type(n) is not int or abs(n) >= 2**63 for n in shape) or len(shape) > _MAX_RANK:
            raise ValueError("a size that no array has")
    wide = dtype.itemsize > _ITEM_BYTES.get(dtype.kind, 8)
    if dtype.kind not in kinds or wide or min(shape, default=0) < 0:
        other = f"{dtype} {list(shape)}"
        raise error(f"{where}: expected an array of {_KINDS[kinds]}, found {other:.200}")
    expected, found = math.prod(shape) * dtype.itemsize, size - length
    if found != expected:
        problem = "truncated" if found < expected else "too long"
        stated = f"an array {list(shape)} of {dtype} takes {expected} bytes"
        raise error(f"{where}: {problem}: {stated}, found {found}")
    check_size(shape, dtype, where, max_bytes, error)
    return header


def npy_shape(path: pathlib.Path) -> tuple[int, ...]:
    """Return the shape of a floating `.npy` array of one image, from its header."""
    with foreign_errors(f"{path}: cannot be read"), open_regular(path) as file:
        return _read_header(file, os.fstat(file.fileno()).st_size, str(path)).shape


def read_npy(path: pathlib.Path) -> np.ndarray:
    """Read a floating `.npy` array of one image."""
    with foreign_errors(f"{path}: cannot be read"), open_regular(path) as file:
        header = _read_header(file, os.fstat(file.fileno()).st_size, str(path))
        return header.array(np.fromfile(file, header.dtype))


def parse_npy(content: bytes, where: str) -> np.ndarray:
    """Return the floating array of one image in the bytes of a `.npy` file."""
    file = io.BytesIO(content)
    header = _read_header(file, len(content), where)
    return header.array(np.frombuffer(content, header.dtype, offset=file.tell()))


class ArrayFile:
    """An open `.npz`, whose arrays are read one by one; `names` has their names.

    Args:
        source: the file, or its bytes.
        problem: begins the message where it is no such archive.
        error: class of all errors.
        where: name of the bytes, for messages.
        max_bytes: size of all arrays together.

    Raises:
        SparsecapError: `error`, where the file is missing or damaged, or its arrays take over
            `max_bytes`. So do its methods, where an array is missing, damaged, or not of the kind.
    """

    def __init__(
        self,
        source: str | os.PathLike | bytes,
        problem: str = "not an .npz archive",
        error: type[SparsecapError] = DataError,
        *,
        where: str = "",
        max_bytes: int = MAX_BYTES,
    ):
        self.where, self._error, self._max_bytes = where or str(source), error, max_bytes
        if not isinstance(source, bytes) and not os.path.isfile(source):
            raise error(f"{source}: no such file; {problem}")
        with foreign_errors(f"{self.where}: {problem}", error):
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            self._archive = zipfile.ZipFile(file)
        members = self._archive.infolist()
        self._members = {member.filename.removesuffix(".npy"): member for member in members}
        self.names = list(self._members)
        total = sum(member.file_size for member in members)
        if total > max_bytes:
            self._archive.close()
            raise error(f"{self.where}: arrays of {total} bytes; expected at most {max_bytes}")

    def __enter__(self) -> "ArrayFile":
        return self

    def __exit__(self, *error: object) -> None:
        self._archive.close()

    def shape(self, name: str, kinds: str = "f") -> tuple[int, ...]:
        """Return the shape of an array, from its header; `kinds` as in `read`, or "fiuU"."""
        return self._open(name, kinds, False)[0].shape

    def read(self, name: str, kinds: str = "f", rank: int | None = None) -> np.ndarray:
        """Read an array of a kind of dtype ("f", "iu", "u" or "U"), and of a rank if given."""
        header, content = self._open(name, kinds, True)
        if rank not in (None, len(header.shape)):
            found = f"found {list(header.shape)}"
            raise self._error(f"{self.where}: {name}: expected {rank} dimensions, {found}")
        with foreign_errors(f"{self.where}: {name}: cannot be read", self._error):
            return header.array(np.frombuffer(content, header.dtype))

    def number(self, name: str) -> int:
        """Read a single integer."""
        array = self.read(name, "iu")
        if array.size != 1:
            raise self._error(f"{self.where}: {name}: expected one number, found {array.shape}")
        return int(array.reshape(()))

    def _open(self, name: str, kinds: str, data: bool) -> tuple[Header, bytes]:
        where = f"{self.where}: {_shown(name)}"
        if name not in self._members:
            names = ", ".join(map(_shown, self.names[:10]))
            raise self._error(f"{where}: no such array, found {names:.300}")
        member = self._members[name]
        with foreign_errors(f"{where}: cannot be read", self._error):
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise self._error(f"{where}: compressed in another way than numpy does")
            with self._archive.open(member) as file:
                size, limit = member.file_size, self._max_bytes
                header = _read_header(file, size, where, kinds, limit, self._error)
                return header, file.read(size) if data else b""


def _shown(name: str) -> str:
    return f"{name if name.isprintable() else repr(name):.200}"
