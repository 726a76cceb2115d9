"""Files: small ones read and written all or nothing, and one clear error for each fault."""

import collections
import contextlib
import csv
import errno
import functools
import io
import json
import os
import pathlib
import re
import stat
import struct
import tempfile
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from sparsecap_jax.errors import CheckpointError, DataError, SparsecapError

# Faults that libraries report as text, in errors of types of their own.
_CODES = [
    getattr(errno, f"E{name}")
    for name in ("NOSPC", "DQUOT", "FBIG", "ROFS", "ACCES", "NOTDIR", "ISDIR", "NAMETOOLONG", "IO")
]


MAX_BYTES = 2**30
"""Size of a file that is read whole; COCO's largest has 0.15 GB."""

SETTINGS_BYTES = 2**20
"""Size of a file of settings, such as the config of a run."""

LIST_BYTES = 2**26
"""Size of a list of images that stands next to data, such as the description of a shard."""

# What libraries raise for damaged input. UnicodeDecodeError and numpy's errors of shapes and types
# are ValueErrors, RecursionError and NotImplementedError RuntimeErrors.
FOREIGN = (
    *(OSError, EOFError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError),
    *(SyntaxError, RuntimeError, MemoryError, struct.error, zlib.error, zipfile.BadZipFile),
    tokenize.TokenError,
)


@contextlib.contextmanager
def foreign_errors(
    problem: str,
    error: type[SparsecapError] = DataError,
    errors: tuple[type[Exception], ...] = FOREIGN,
) -> Iterator[None]:
    """Turn whatever a library raises for damaged input into `error`, one line: `PROBLEM: reason`.

    The block holds calls of libraries and checks of their results, no logic of its own: faults of
    that would be taken for damage.
    """
    try:
        yield
    except SparsecapError:
        raise
    except errors as caught:
        reason = getattr(caught, "strerror", "") or str(caught) or type(caught).__name__
        raise error(f"{problem}: {reason.splitlines()[0]:.300}") from caught


@contextlib.contextmanager
def write_atomically(path: str | os.PathLike, mode: str = "w") -> Iterator[IO]:
    """Open a temporary file that takes `path`'s place when the block ends without an error.

    Args:
        path: file to replace; its folder is made if need be.
        mode: "w" for UTF-8 text, "wb" for bytes.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    with named_errors(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, mode, **text) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            pathlib.Path(name).unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def named_errors(path: str | os.PathLike) -> Iterator[None]:
    """Name `path` in errors of the system that name no file, or its temporary one.

    Errors of libraries that only say so in their text become an OSError.
    """
    try:
        yield
    except SparsecapError:
        raise
    except OSError as error:
        if error.errno and (not error.filename or f".{pathlib.Path(path).name}." in error.filename):
            error.filename, error.filename2 = str(path), None
        raise
    except Exception as error:
        for code in _codes_in(error):
            raise OSError(code, os.strerror(code), str(path)) from error
        raise


def _codes_in(error: BaseException) -> list[int]:
    """Return the error codes whose texts an error quotes."""
    return [code for code in _CODES if os.strerror(code) in str(error)]


def system_fault(error: BaseException | None) -> str | None:
    """Return path and reason where an error stems from a full disk, missing rights or the like."""
    while error is not None:
        if isinstance(error, OSError):
            reason = error.strerror or str(error) or type(error).__name__
            if isinstance(error, FileExistsError):  # where a folder should be made
                reason = os.strerror(errno.ENOTDIR)
            unnamed = "standard output, or a file without a name" if error.errno else None
            path = error.filename2 or error.filename or unnamed
            return f"{path}: {reason}" if path else reason
        for code in _codes_in(error):
            # Orbax quotes the file in a temporary folder; the checkpoint that it becomes says more.
            quoted = re.search(r"[\"'](/[^\"']+?)(\.orbax-checkpoint-tmp[^\"']*)?[\"']", str(error))
            return (f"{quoted[1]}: " if quoted else "") + os.strerror(code)
        error = error.__cause__
    return None


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yield a folder that becomes `path`, absent or empty, when the block ends without an error."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}."
    with named_errors(path), tempfile.TemporaryDirectory(dir=path.parent, prefix=prefix) as folder:
        written = pathlib.Path(folder, path.name)
        written.mkdir()
        try:
            yield written
        except SparsecapError as error:  # one that names a file in there
            raise type(error)(str(error).replace(str(written), str(path))) from error
        if path.exists():
            path.rmdir()
        os.replace(written, path)


def write_json(path: str | os.PathLike, value: Any, indent: int | None = 2) -> None:
    """Write `value` as UTF-8 JSON, all or nothing; without `indent` in one line."""
    try:
        with write_atomically(path) as file:
            json.dump(value, file, indent=indent, ensure_ascii=False)
            file.write("\n")
    except UnicodeEncodeError as error:  # a lone surrogate, which JSON can spell
        raise DataError(f"{path}: {error.object!r:.80} is not valid Unicode text") from error


def unused(path: str | os.PathLike, file_suffix: str | None = None) -> pathlib.Path:
    """Return a path to write to, which does not exist or is an empty folder.

    Args:
        path: folder to write; or a file, where its name may end with `file_suffix`.
        file_suffix: what names of files end with; None where only a folder will do.

    Raises:
        CheckpointError: it is in use.
    """
    path = pathlib.Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        file = file_suffix is not None and (path.is_file() or path.suffix == file_suffix)
        expected = "the name of a new file" if file else "a new or empty folder to write to"
        raise CheckpointError(f"{path}: exists; expected {expected}")
    return path


def absent(path: str | os.PathLike, expected: str) -> str:
    """Return the message about a file or folder that is not there, the same in all commands."""
    return f"{os.fspath(path)}: no such file or folder; expected {expected}"


def open_regular(path: str | os.PathLike, buffering: int = -1) -> IO:
    """Open a file for reading bytes; OSError where it is a device, pipe, socket or folder."""
    return open(path, "rb", buffering, opener=_regular)


def open_own(path: str | os.PathLike) -> IO:
    """Open a file of ours, made if need be, for reading bytes and appending them.

    Raises:
        SparsecapError: it is a symbolic link, which may lead to any file of the user, or no file.
    """
    try:
        return open(path, "a+b", opener=functools.partial(_regular, more=os.O_NOFOLLOW))
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.EISDIR):
            raise
        found = "a symbolic link" if os.path.islink(path) else "no regular file"
        raise SparsecapError(f"{path}: {found}; expected a file of its own, or none") from error


def _regular(name: str, flags: int, more: int = 0) -> int:
    handle = os.open(name, flags | os.O_NONBLOCK | more, 0o644)  # a pipe would wait for its writer
    mode = os.fstat(handle).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # `open` refuses folders
        os.close(handle)
        raise OSError(errno.EINVAL, "a device, pipe or socket; expected a regular file", name)
    return handle


def read_bytes(
    path: str | os.PathLike, expected: str = "a file", *, max_bytes: int = MAX_BYTES
) -> bytes:
    """Read a whole file of at most `max_bytes`; errors say what is `expected`.

    Raises:
        DataError: it is missing, larger, no regular file, or cannot be read.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                at_most = f"expected {expected} of at most {max_bytes}"
                raise DataError(f"{path}: {size} bytes; {at_most}")
            return file.read(size)  # no more, should it grow
    except FileNotFoundError as error:
        raise DataError(absent(path, expected)) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object of its (key, value) pairs; ValueError where a key occurs twice.

    For `json.loads(text, object_pairs_hook=unique_keys)`.
    """
    value = dict(pairs)
    if len(value) < len(pairs):
        ((key, count),) = collections.Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"key {key!r:.80} occurs {count} times in one object, expected once")
    return value


def read_json(
    path: str | os.PathLike, expected: str = "JSON", *, max_bytes: int = MAX_BYTES
) -> Any:
    """Read a JSON file, UTF-8 with or without a byte-order mark; errors say what is `expected`.

    Raises:
        DataError: it is missing, over `max_bytes`, not UTF-8, or not JSON, or an object has a key
            twice; the message says where.
    """
    try:
        text = read_bytes(path, expected, max_bytes=max_bytes).decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=unique_keys)
    except DataError:
        raise
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; expected {expected}") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise DataError(f"{path}: broken JSON at {where}: {error.msg}") from error
    except (RecursionError, ValueError) as error:  # too deep; an integer of 5,000 digits; a key
        raise DataError(f"{path}: JSON that cannot be read: {error}") from error


def read_settings(path: str | os.PathLike, expected: str = "settings") -> dict[str, Any]:
    """Read a small JSON file that holds an object; errors as in `read_json`."""
    content = read_json(path, expected, max_bytes=SETTINGS_BYTES)
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected an object of {expected}, found {content!r:.80}")
    return content


def read_csv(path: str | os.PathLike) -> list[dict[str, str]]:
    """Read a table with a header as one dict of text per row; DataError where it cannot be read."""
    with foreign_errors(f"{path}: not a table"):
        lines = io.StringIO(read_bytes(path, "a table").decode("utf-8-sig"), newline="")
    try:
        return list(csv.DictReader(lines))
    except csv.Error as error:
        raise DataError(f"{path}: not a table: {error}") from error


def write_table(path: str | os.PathLike, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write rows as CSV with a header, and return it: all columns in order of appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with write_atomically(path) as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return columns


def save_figure(figure: Any, path: str | os.PathLike) -> None:
    """Write a figure of Matplotlib as PNG, all or nothing."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    with write_atomically(path, "wb") as file, warnings.catch_warnings():
        # Matplotlib's own font lacks Chinese, say: such captions are drawn as boxes.
        warnings.filterwarnings("ignore", r"Glyph .* missing from font")
        figure.savefig(file, format="png", dpi=110)
