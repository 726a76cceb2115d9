"""Reading and writing small files: all or nothing, and one clear error."""

import collections
import contextlib
import csv
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from sparsecap_jax.errors import DataError


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
    with write_atomically(path) as file:
        json.dump(value, file, indent=indent, ensure_ascii=False)
        file.write("\n")


def unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object of its (key, value) pairs; ValueError where a key occurs twice.

    For `json.loads(text, object_pairs_hook=unique_keys)`.
    """
    value = dict(pairs)
    if len(value) < len(pairs):
        ((key, count),) = collections.Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"key {key!r:.80} occurs {count} times in one object, expected once")
    return value


def read_json(path: str | pathlib.Path, expected: str = "JSON") -> Any:
    """Read a JSON file, UTF-8 with or without a byte-order mark; errors say what is `expected`.

    Raises:
        DataError: it is missing, not UTF-8, or not JSON, or an object has a key twice; the message
            says where.
    """
    path = pathlib.Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=unique_keys)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; expected {expected}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; expected {expected}") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise DataError(f"{path}: broken JSON at {where}: {error.msg}") from error
    except (RecursionError, ValueError) as error:  # too deep; an integer of 5,000 digits; a key
        raise DataError(f"{path}: JSON that cannot be read: {error}") from error


def read_csv(path: str | pathlib.Path) -> list[dict[str, str]]:
    """Read a table with a header as one dict of text per row."""
    with pathlib.Path(path).open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def write_table(path: str | pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write rows as CSV with a header, and return it: all columns in order of appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with write_atomically(path) as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return columns
