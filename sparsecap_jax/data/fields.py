"""Checks on what data files hold: every fault is one error, or is skipped and counted."""

import logging
import pathlib
import types
from typing import Any

from sparsecap_jax.errors import DataError

_JSON_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int | str: "an integer or a name",
}
_SHOWN = 5  # faults that are logged one by one


class Faults:
    """What to do with bad entries: stop at the first one, or skip, log and count them.

    Args:
        skip: whether to go on (`--skip_bad`, `config.data.skip_bad`).
        unit: what the entries are, for messages.
    """

    def __init__(self, skip: bool = False, unit: str = "entries"):
        self.count = 0
        self._skip = skip
        self._unit = unit

    def add(self, error: DataError) -> None:
        """Raise `error`, or log the first few and count it."""
        if not self._skip:
            raise error
        self.count += 1
        if self.count <= _SHOWN:
            logging.getLogger(__name__).warning("skipped: %s", error)

    def report(self, source: Any) -> None:
        """Log how many entries of `source` were skipped, if any."""
        if self.count:
            message = "%s: skipped %d bad %s"
            logging.getLogger(__name__).warning(message, source, self.count, self._unit)


def field(parent: Any, name: str, kind: type | types.UnionType, where: str) -> Any:
    """Return `parent[name]`, checked to be of `kind`.

    Raises:
        DataError: `parent` is no object, has no such key, or holds something else there.
    """
    if not isinstance(parent, dict):
        raise DataError(f"{where}: expected an object, found {parent!r:.80}")
    if name not in parent:
        raise DataError(f"{where}: key {name!r} is missing, found keys {sorted(parent)!r:.80}")
    value = parent[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f"{where}.{name}: expected {_JSON_NAMES[kind]}, found {value!r:.80}")
    return value


def check_text(text: str, where: str) -> str:
    """Return `text`, which must be Unicode that can be written (no lone surrogates)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: not valid Unicode text: {error.reason}") from None
    return text


def check_path(path: str, where: str) -> str:
    """Return a picture's relative path, which must stay below the folder of pictures."""
    parts = pathlib.PurePosixPath(path.replace("\\", "/")).parts
    if "\0" in path or ".." in parts or path[:1] in ("/", "\\") or ":" in path[:2]:
        raise DataError(f"{where}: expected a path below the image folder, found {path!r:.80}")
    return path


def read_lines(path: pathlib.Path, expected: str) -> list[str]:
    """Lines of a UTF-8 text file, without their ends (LF or CRLF).

    Raises:
        DataError: the file is missing, empty, or a line is not UTF-8.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected {expected}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if not content.strip():
        raise DataError(f"{path}: the file is empty; expected {expected}")
    lines = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            lines.append(line.decode("utf-8").removesuffix("\r"))
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: line {number} is not UTF-8 (byte {error.start})") from None
    return lines if lines[-1] else lines[:-1]
