"""Model files: weights along with config, tokenizer and notes in one file (docs/formats.md).

Nothing in a file is executed. Sizes are checked before memory is taken, contents by CRC-32; at most
one chunk of coded symbols and one tensor are decoded at a time.
"""

import bisect
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.files import absent, foreign_errors, open_regular, unique_keys, write_atomically
from sparsecap_jax.model_files import tensors
from sparsecap_jax.model_files.checks import (
    MAX_FILES,
    check_name,
    check_paths,
    check_written,
    cut_short,
)
from sparsecap_jax.model_files.range_coder import (
    LEVELS,
    TOTAL,
    Decoder,
    encode,
    gap_table,
    quantized,
)

MAGIC = b"\x89SCAP\r\n\x1a"
FORMAT_VERSION = 1

_HEAD = struct.Struct("<8sIIII")
_CHUNK = 2**22  # symbols
_MAX_HEADER = 2**22
_WEIGHTS_PER_BYTE = 2**16  # far beyond what any model has


def write_model(
    path: str | pathlib.Path,
    params: Mapping[str, Any],
    masks: Mapping[str, Any],
    *,
    form: str = "float32",
    notes: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> dict[str, int]:
    """Write a model file, all or nothing.

    Args:
        path: the file.
        params: arrays by path (`a/b`), stored as float32 or smaller.
        masks: masks of some of them; what they prune is not stored.
        form: of the values, see `values`.
        notes: settings of any kind, as JSON.
        files: small files by relative path.

    Returns:
        Sizes in bytes: of the whole `file`, and of the `weights` with their part of the header.

    Raises:
        CheckpointError: an unknown form, or what a reader would refuse: paths, names or masks that
            do not fit, small files or notes that are too large.
    """
    with foreign_errors(f"{path}: cannot be written", CheckpointError, (ValueError,)):
        check_written(params, masks, form, files or {})
    planned = [
        tensors.plan(name, np.asarray(value, np.float32, order="C"), _array(masks.get(name)), form)
        for name, value in params.items()
    ]
    planes = [plane for _, parts, _ in planned for plane in parts if plane.field]
    counts, numbers = tensors.share_tables(planes)
    entries = []
    for entry, parts, raw in planned:
        tables: dict[str, Any]
        tables = {plane.field: numbers[id(plane)] for plane in parts if plane.field}
        entries.append(dataclasses.replace(entry, checksum=zlib.crc32(raw), **tables))
    explicit = [quantized(table) for table in counts]
    chunks = _encoded(entries, [plane for _, parts, _ in planned for plane in parts], explicit)
    stored = {name: zlib.compress(content, 9) for name, content in (files or {}).items()}
    weights = {
        "tables": [_sparse_table(table) for table in explicit],
        "tensors": [entry.to_json() for entry in entries],
        "chunks": [[len(chunk), zlib.crc32(chunk)] for chunk in chunks],
    }
    members = {
        "notes": dict(notes or {}),
        "files": [
            [name, len((files or {})[name]), len(packed), zlib.crc32(packed)]
            for name, packed in stored.items()
        ],
    }
    text, packed = _packed_json(members | weights)
    if max(len(text), len(packed)) > _MAX_HEADER:
        found = f"a header of {len(text)} bytes; expected at most {_MAX_HEADER}"
        raise CheckpointError(f"{path}: cannot be written: {found}")
    head = _HEAD.pack(MAGIC, FORMAT_VERSION, len(packed), len(text), zlib.crc32(packed))
    payload = [*(raw for _, _, raw in planned), *chunks]
    with write_atomically(path, "wb") as file:
        file.writelines([head, packed, *stored.values(), *payload])
    size = len(head) + len(_packed_json(weights)[1]) + sum(map(len, payload))
    return {"file": pathlib.Path(path).stat().st_size, "weights": size}


def _array(mask: Any) -> np.ndarray | None:
    return None if mask is None else np.asarray(mask)


def _packed_json(value: Any) -> tuple[bytes, bytes]:
    text = json.dumps(value, separators=(",", ":")).encode()
    return text, zlib.compress(text, 9)


def _sparse_table(table: np.ndarray) -> list[int]:
    """Return a table as its first symbol and the frequencies up to the last one."""
    used = np.flatnonzero(table)
    first, last = (int(used[0]), int(used[-1])) if len(used) else (0, -1)
    return [first, *table[first : last + 1].tolist()]


def _encoded(
    entries: list[tensors.Entry], planes: list[tensors.Plane], explicit: list[np.ndarray]
) -> list[bytes]:
    """Code the symbols of all tensors in chunks."""
    tables = np.stack([*map(gap_table, range(LEVELS)), *explicit])
    symbols = np.concatenate([np.empty(0, np.uint8), *(plane.symbols for plane in planes)])
    runs = [run for entry in entries for run in entry.runs()]
    chosen = np.repeat(*np.array(runs, np.int64).reshape(-1, 2).T)
    return [
        encode(symbols[first : first + _CHUNK], tables, chosen[first : first + _CHUNK])
        for first in range(0, len(symbols), _CHUNK)
    ]


class ModelFile:
    """An open model file.

    Attributes:
        notes: settings that were stored with it.
        entries: entries of the tensors.

    Raises:
        CheckpointError: the file is missing, of another format, or damaged.
    """

    def __init__(self, path: str | pathlib.Path):
        self._path = str(path)
        if not os.path.exists(path):
            raise CheckpointError(absent(path, "a model file"))
        with self._errors("no model file"):
            self._file = open_regular(path)
        try:
            with self._errors("damaged header"):
                self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "ModelFile":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the leaves by path."""
        return {entry.name: entry.shape for entry in self.entries}

    def files(self) -> dict[str, bytes]:
        """Return the small files that were stored along with the weights, by relative path."""
        found = {}
        for name, size, stored, offset, checksum in self._files:
            with self._errors(f"{name}: damaged"):
                found[name] = _inflated(self._section(offset, stored, checksum), size)
        return found

    def read(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Return float32 params, and uint8 masks of zeros and ones, by path."""
        params, masks = {}, {}
        symbols = _Symbols(self)
        for entry, offset in zip(self.entries, self._raw, strict=True):
            with self._errors(f"{entry.name}: damaged"):
                raw = self._section(offset, entry.raw_bytes, entry.checksum)
                params[entry.name], mask = tensors.unpack(entry, symbols.take, raw)
            if mask is not None:
                masks[entry.name] = mask
        return params, masks

    def _read_header(self) -> None:
        size = os.fstat(self._file.fileno()).st_size
        head = self._file.read(_HEAD.size)
        if head[: len(MAGIC)] != MAGIC[: len(head)] or not head:
            begins = f"it begins with {head[: len(MAGIC)]!r}" if head else "it is empty"
            raise CheckpointError(f"{self._path}: no model file: {begins}")
        if len(head) < _HEAD.size:
            raise ValueError(cut_short(size, _HEAD.size))
        _, version, packed, inflated, checksum = _HEAD.unpack(head)
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{self._path}: format_version is {version}; this release reads {FORMAT_VERSION}"
            )
        offset = _HEAD.size + packed
        if max(packed, inflated) > _MAX_HEADER:
            sizes = f"it states {packed} bytes, {inflated} inflated"
            raise ValueError(f"{sizes}; expected at most {_MAX_HEADER}")
        if offset > size:
            raise ValueError(cut_short(size, offset))
        text = _inflated(self._section(_HEAD.size, packed, checksum), inflated)
        header = json.loads(text, object_pairs_hook=unique_keys)
        self.notes = dict(header["notes"])
        self._files, left = [], MAX_FILES
        for name, inflated, stored, checksum in header["files"]:
            left -= tensors.whole(inflated, left)
            check_name(name)
            self._files.append((name, inflated, tensors.whole(stored, size), offset, checksum))
            offset += stored
        self._tables = [_table(listed) for listed in header["tables"][: tensors.MAX_TABLES]]
        most = _WEIGHTS_PER_BYTE * size
        self.entries = [
            tensors.Entry.from_json(entry, len(self._tables), most) for entry in header["tensors"]
        ]
        total = sum(math.prod(entry.shape) for entry in self.entries)
        if total > most:
            raise ValueError(f"{total} weights; expected at most {most}")
        check_paths(entry.name for entry in self.entries)
        self._raw = []
        for entry in self.entries:
            self._raw.append(offset)
            offset += entry.raw_bytes
        self._runs = [run for entry in self.entries for run in entry.runs()]
        symbols = sum(count for _, count in self._runs)
        self._chunks = []
        for stored, checksum in header["chunks"]:
            self._chunks.append((offset, tensors.whole(stored, size), checksum))
            offset += stored
        if len(self._chunks) != -(-symbols // _CHUNK) or offset != size:
            more = f"the file has {size} bytes; the header states {offset}"
            raise ValueError(cut_short(size, offset) if size < offset else more)

    def _section(self, offset: int, size: int, checksum: int) -> bytes:
        self._file.seek(offset)
        content = self._file.read(size)
        if len(content) != size:
            raise ValueError(cut_short(offset + len(content), offset + size))
        if zlib.crc32(content) != checksum:
            raise ValueError("its checksum is wrong")
        return content

    @contextlib.contextmanager
    def _errors(self, problem: str) -> Iterator[None]:
        try:
            with foreign_errors(f"{self._path}: {problem}", CheckpointError):
                yield
        except CheckpointError as error:
            if self._path in str(error):
                raise
            raise CheckpointError(f"{self._path}: {problem}: {error}") from error


class _Symbols:
    """The coded symbols of a file, decoded chunk by chunk."""

    def __init__(self, file: ModelFile):
        self._file = file
        runs = np.array(file._runs, np.int64).reshape(-1, 2)
        used, self._tables = np.unique(runs[:, 0], return_inverse=True)
        self._ends = np.cumsum(runs[:, 1])
        tables = [gap_table(n) if n < LEVELS else file._tables[n - LEVELS] for n in used.tolist()]
        self._decoder = Decoder(np.array(tables, np.int64).reshape(-1, 256))
        self._decoded, self._chunk = np.empty(0, np.uint8), 0

    def take(self, count: int) -> np.ndarray:
        """Return the next `count` symbols."""
        parts = []
        while count > len(self._decoded):
            parts.append(self._decoded)
            count -= len(self._decoded)
            self._decoded = self._next()
        parts.append(self._decoded[:count])
        self._decoded = self._decoded[count:]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _next(self) -> np.ndarray:
        first, last = self._chunk * _CHUNK, min((self._chunk + 1) * _CHUNK, int(self._ends[-1]))
        content = self._file._section(*self._file._chunks[self._chunk])
        ends = self._ends
        runs = slice(bisect.bisect_right(ends, first), bisect.bisect_left(ends, last) + 1)
        counts = np.diff(np.minimum(ends[runs], last), prepend=first)
        self._chunk += 1
        return self._decoder.decode(content, np.repeat(self._tables[runs], counts))


def _table(listed: Any) -> np.ndarray:
    """Return the frequencies of a table that is given as first symbol and frequencies."""
    first, *frequencies = (tensors.whole(number, TOTAL) for number in listed)
    table = np.zeros(256, np.int64)
    table[first : first + len(frequencies)] = frequencies
    if table.sum() != TOTAL:
        raise ValueError(f"frequencies that add up to {table.sum()}; expected {TOTAL}")
    return table


def _inflated(content: bytes, size: int) -> bytes:
    inflater = zlib.decompressobj()
    found = inflater.decompress(content, size + 1)
    if len(found) != size or not inflater.eof or inflater.unused_data:
        raise ValueError(f"it does not inflate to {size} bytes")
    return found
