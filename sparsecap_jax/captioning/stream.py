"""File of captions that grows image by image and survives interruptions."""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from sparsecap_jax.data.karpathy import ImageId
from sparsecap_jax.errors import DataError
from sparsecap_jax.files import (
    LIST_BYTES,
    MAX_BYTES,
    named_errors,
    open_own,
    write_atomically,
    write_json,
)
from sparsecap_jax.locks import locked


class CaptionStream:
    """Writer of entries to `PATH.partial`, one line of JSON each, and to `path` once complete.

    The first line holds `settings`: a file of other settings is not continued. A last line that an
    interruption cut short is removed.

    Args:
        path: `.jsonl` for one entry a line, `.json` for a list.
        settings: values of JSON types that the entries depend on.
        key: field of the entries that says which image they are of.
        overwrite: whether a finished `path` may be replaced.

    Attributes:
        entries: all entries so far, by their values of `key`.
        done: those values that had entries in the beginning.

    Raises:
        DataError: `path` has another ending, or is finished and not to be replaced; `PATH.partial`
            has other settings or another format.
        SparsecapError: another process is writing to `path`, or `PATH.partial` is no regular file.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        settings: dict[str, Any],
        key: str = "image_id",
        overwrite: bool = True,
    ):
        self._path, self._key = pathlib.Path(path), key
        if self._path.suffix not in (".json", ".jsonl"):
            raise DataError(f"{path}: expected a name that ends in .json or .jsonl")
        self._partial = self._path.with_name(f"{self._path.name}.partial")
        self.entries: dict[ImageId, dict[str, Any]] = {}
        with named_errors(self._partial), contextlib.ExitStack() as opened:
            opened.enter_context(locked(self._path, folder=False))
            if not overwrite and self._path.exists():
                raise DataError(f"{path}: finished already; expected another name, or --overwrite")
            self._file = opened.enter_context(open_own(self._partial))
            self._continue(settings)
            self._opened = opened.pop_all()
        self.done = frozenset(self.entries)

    def __enter__(self) -> "CaptionStream":
        return self

    def __exit__(self, *error: Any) -> None:
        with named_errors(self._partial):  # of what could not be written
            self._opened.__exit__(*error)

    def write(self, entry: dict[str, Any]) -> None:
        """Add the entry of `entry[key]`."""
        image = entry[self._key]
        if image in self.entries:
            raise DataError(f"{self._partial}: image {image!r} was captioned before")
        with named_errors(self._partial):
            self._append(entry)
        self.entries[image] = entry

    def finish(
        self, images: Sequence[ImageId], content: Callable[[list[dict[str, Any]]], Any] = list
    ) -> list[dict[str, Any]]:
        """Write `path`, the entries of `images` in that order, and remove `PATH.partial`.

        A `.json` file holds `content` of the entries.
        """
        entries = [self.entries[image] for image in images]
        if self._path.suffix == ".jsonl":
            with write_atomically(self._path) as file:
                file.writelines(_line(entry) for entry in entries)
        else:
            write_json(self._path, content(entries))
        self.discard()
        return entries

    def discard(self) -> None:
        """Remove `PATH.partial`; nothing is written to `path`."""
        self._partial.unlink()

    def _continue(self, settings: dict[str, Any]) -> None:
        """Read the entries of an earlier call; without a whole first line there are none."""
        self._file.seek(0)
        if os.fstat(self._file.fileno()).st_size > MAX_BYTES:
            raise DataError(f"{self._partial}: over {MAX_BYTES} bytes; expected captions")
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        first = {"settings": settings}
        if not whole and not _line(first).encode().startswith(content):
            raise DataError(f"{self._partial}: expected captions of {settings}; remove it to start")
        for number, line in enumerate(whole.splitlines(), 1):
            where = f"{self._partial}: line {number}"
            if number == 1 and len(line) > LIST_BYTES:
                raise DataError(f"{where}: {len(line)} bytes; expected at most {LIST_BYTES}")
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where}: broken JSON: {error}") from error
            if not isinstance(entry, dict):
                raise DataError(f"{where}: expected an object")
            if number == 1 and entry.get("settings") != settings:
                found = _differences(entry.get("settings"), settings)
                raise DataError(f"{self._partial}: {found}; remove it to start again")
            if number > 1:
                image = entry.get(self._key)
                if not isinstance(image, int | str) or image in self.entries:
                    raise DataError(f"{where}: expected an image of its own")
                self.entries[image] = entry
        self._file.truncate(len(whole))
        if not whole:
            try:
                self._append(first)
            except OSError:
                self._partial.unlink()
                raise

    def _append(self, value: dict[str, Any]) -> None:
        # Flushed line by line: a killed process leaves whole lines, or part of the last one.
        self._file.write(_line(value).encode())
        self._file.flush()


def _differences(begun: Any, settings: dict[str, Any]) -> str:
    """Name the settings in which a file differs from those of this call."""
    if not isinstance(begun, dict):
        return "was begun with no settings"
    keys = [key for key in {**begun, **settings} if begun.get(key) != settings.get(key)]
    shown = [{key: values.get(key) for key in keys} for values in (begun, settings)]
    old, new = (", ".join(f"{key} {value!s:.200}" for key, value in s.items()) for s in shown)
    return f"was begun with {old}; expected {new}"


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
