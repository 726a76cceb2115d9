"""Reading and writing small files: all or nothing, and one clear error."""

import contextlib
import csv
import io
import json
import os
import pathlib
import struct
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from sparsecap_jax.errors import DataError, SparsecapError

MAX_BYTES = 2**30
"""Size of a file that is read whole; COCO's largest has 0.15 GB."""

SETTINGS_BYTES = 2**20
"""Size of a file of settings, such as the config of a run."""

# What libraries raise for damaged input. UnicodeDecodeError and numpy's errors of shapes and types
# are ValueErrors, RecursionError and NotImplementedError RuntimeErrors.
_FOREIGN = (
    *(OSError, EOFError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError),
    *(SyntaxError, RuntimeError, MemoryError, struct.error, zlib.error, zipfile.BadZipFile),
    tokenize.TokenError,
)


@contextlib.contextmanager
def foreign_errors(problem: str, error: type[SparsecapError] = DataError) -> Iterator[None]:
    """Turn whatever a library raises for damaged input into `error`, one line: `PROBLEM: reason`.

    The block holds calls of libraries and checks of their results, no logic of its own: faults of
    that would be taken for damage.
    """
    try:
        yield
    except SparsecapError:
        raise
    except _FOREIGN as caught:
        reason = getattr(caught, "strerror", "") or str(caught) or type(caught).__name__
        raise error(f"{problem}: {reason.splitlines()[0]:.300}") from caught


@contextlib.contextmanager
def write_atomically(path: str | pathlib.Path, mode: str = "w") -> Iterator[IO]:
    """Open a temporary file that takes `path`'s place when the block ends without an error.

    Args:
        path: file to replace; its folder is made if need be.
        mode: "w" for UTF-8 text, "wb" for bytes.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
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
def new_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yield a folder that becomes `path`, absent or empty, when the block ends without an error."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        written = pathlib.Path(folder, path.name)
        written.mkdir()
        yield written
        if path.exists():
            path.rmdir()
        os.replace(written, path)


def write_json(path: str | pathlib.Path, value: Any, indent: int | None = 2) -> None:
    """Write `value` as UTF-8 JSON, all or nothing; without `indent` in one line."""
    try:
        with write_atomically(path) as file:
            json.dump(value, file, indent=indent, ensure_ascii=False)
            file.write("\n")
    except UnicodeEncodeError as error:  # a lone surrogate, which JSON can spell
        raise DataError(f"{path}: {error.object!r:.80} is not valid Unicode text") from error


def read_bytes(
    path: str | pathlib.Path, expected: str = "a file", *, max_bytes: int = MAX_BYTES
) -> bytes:
    """Read a whole file of at most `max_bytes`; errors say what is `expected`.

    Raises:
        DataError: it is missing, larger, or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                at_most = f"expected {expected} of at most {max_bytes}"
                raise DataError(f"{path}: {size} bytes; {at_most}")
            return file.read()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; expected {expected}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def read_json(
    path: str | pathlib.Path, expected: str = "JSON", *, max_bytes: int = MAX_BYTES
) -> Any:
    """Read a JSON file, UTF-8 with or without a byte-order mark; errors say what is `expected`.

    Raises:
        DataError: it is missing, over `max_bytes`, not UTF-8, or not JSON; the message says where.
    """
    try:
        return json.loads(read_bytes(path, expected, max_bytes=max_bytes).decode("utf-8-sig"))
    except DataError:
        raise
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; expected {expected}") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise DataError(f"{path}: broken JSON at {where}: {error.msg}") from error
    except (RecursionError, ValueError) as error:  # nested too deep; an integer of 5,000 digits
        raise DataError(f"{path}: JSON that cannot be read: {error}") from error


def read_settings(path: str | pathlib.Path, expected: str = "settings") -> dict[str, Any]:
    """Read a small JSON file that holds an object; errors as in `read_json`."""
    content = read_json(path, expected, max_bytes=SETTINGS_BYTES)
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected an object of {expected}, found {content!r:.80}")
    return content


def read_csv(path: str | pathlib.Path) -> list[dict[str, str]]:
    """Read a table with a header as one dict of text per row; DataError where it cannot be read."""
    with foreign_errors(f"{path}: not a table"):
        lines = io.StringIO(read_bytes(path, "a table").decode("utf-8-sig"), newline="")
    try:
        return list(csv.DictReader(lines))
    except csv.Error as error:
        raise DataError(f"{path}: not a table: {error}") from error


def write_table(path: str | pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write rows as CSV with a header, and return it: all columns in order of appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with write_atomically(path) as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return columns
