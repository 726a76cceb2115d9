"""Archives of arrays (`.npz`), read one array at a time: sizes are checked before memory is taken.

Nothing is unpickled, and no member is inflated beyond the size that its header states.
"""

import io
import math
import pathlib
import zipfile
from typing import Any, NamedTuple

import numpy as np

from sparsecap_jax.errors import DataError, SparsecapError
from sparsecap_jax.files import foreign_errors

MAX_BYTES = 2**31
"""Size of all arrays of an archive together; the largest model of the papers takes 0.22 GB."""

_MAX_HEADER = 10_000  # bytes, numpy's own limit
_MAX_RANK = 32
_KINDS = {"f": "floats", "iu": "integers", "u": "unsigned integers", "U": "text"}


class Header(NamedTuple):
    """Shape, dtype and order of an array, and the length of its header in bytes."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    length: int


class ArrayFile:
    """An open `.npz`; `headers` has the `Header` of each array by name.

    Args:
        path: the file.
        problem: begins the message where the file is no such archive.
        error: class of all errors.

    Raises:
        SparsecapError: `error`, where the file is missing or damaged, holds anything but plain
            arrays, or these take over `MAX_BYTES` together.
    """

    def __init__(
        self, path: str | pathlib.Path, problem: str, error: type[SparsecapError] = DataError
    ):
        self._where, self._error = str(path), error
        try:
            with foreign_errors(f"{path}: {problem}", error):
                self._archive = zipfile.ZipFile(path)
        except error as caught:
            if isinstance(caught.__cause__, FileNotFoundError):
                raise error(f"{path}: no such file; {problem}") from caught.__cause__
            raise
        self.headers: dict[str, Header] = {}
        try:
            for info in self._archive.infolist():
                self.headers[info.filename.removesuffix(".npy")] = self._header(info)
            total = sum(math.prod(h.shape) * h.dtype.itemsize for h in self.headers.values())
            if total > MAX_BYTES:
                raise error(f"{path}: arrays of {total} bytes; expected at most {MAX_BYTES}")
        except BaseException:
            self._archive.close()
            raise

    def __enter__(self) -> "ArrayFile":
        return self

    def __exit__(self, *error: object) -> None:
        self._archive.close()

    def read(self, name: str, kinds: str = "f", rank: int | None = None) -> np.ndarray:
        """Read an array of a kind of dtype ("f", "iu", "u" or "U"), and of a rank if given."""
        header, where = self.headers.get(name), f"{self._where}: {name}"
        if header is None:
            raise self._error(f"{where}: no such array")
        ranks = (len(header.shape) if rank is None else rank,)
        if header.dtype.kind not in kinds or len(header.shape) not in ranks:
            expected = _KINDS[kinds] + ("" if rank is None else f" of {rank} dimensions")
            found = f"{header.dtype} {list(header.shape)}"
            raise self._error(f"{where}: expected {expected}, found {found}")
        with foreign_errors(f"{where}: corrupt", self._error):
            content = self._archive.read(f"{name}.npy")
            flat = np.frombuffer(content, header.dtype, offset=header.length)
            return flat.reshape(header.shape, order="F" if header.fortran else "C")

    def _header(self, info: zipfile.ZipInfo) -> Header:
        """Read the header of a member, which must state the size that the directory states."""
        name = info.filename if info.filename.isprintable() else repr(info.filename)
        with foreign_errors(f"{self._where}: {name:.200}: not a .npy array", self._error):
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError("compressed in another way than numpy does")
            with self._archive.open(info) as member:
                start = io.BytesIO(member.read(_MAX_HEADER))
            version = np.lib.format.read_magic(start)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"format version {version}")
            parse: Any = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
            header = Header(*parse(start), start.tell())
            size = math.prod(header.shape) * header.dtype.itemsize
            if header.dtype.kind not in "fiuU" or header.dtype.itemsize > 4096:
                raise ValueError(f"dtype {header.dtype!s:.80}")
            if min(header.shape, default=0) < 0 or len(header.shape) > _MAX_RANK:
                raise ValueError(f"shape {header.shape!s:.80}")
            # Numpy multiplies the sizes of empty arrays too.
            if math.prod(max(n, 1) for n in header.shape) > MAX_BYTES:
                raise ValueError(f"shape {header.shape!s:.80}")
            if info.file_size != header.length + size:
                raise ValueError(f"{size} bytes of data stated, {info.file_size} found")
        return header
