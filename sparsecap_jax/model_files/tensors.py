"""One tensor as coded symbols, other bytes, and the entry in the header that describes them."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.model_files import positions, values
from sparsecap_jax.model_files.range_coder import LEVELS

MAX_TABLES = 512

# In bits: what the frequency of a symbol takes in the header.
_BITS_PER_FREQUENCY = 14


@dataclasses.dataclass
class Plane:
    """Symbols of one kind, and the field of the entry that names their table."""

    field: str
    symbols: np.ndarray
    counts: np.ndarray = dataclasses.field(init=False)

    def __post_init__(self):
        self.counts = np.bincount(self.symbols, minlength=256)


@dataclasses.dataclass(frozen=True)
class Entry:
    """What the header says about a tensor.

    Attributes:
        name: path of the leaf, joined by `/`.
        shape: its shape.
        form: of its values, see `values.FORMS`.
        raw_bytes: bytes of its values that are not coded.
        checksum: CRC-32 of these.
        values: number of the table of its values.
        masked: whether it has a mask, of ones if `kept` is None.
        kept: number of kept weights; None if all of them are stored.
        rows: number of the table of the classes of rows; None if there is one class.
        columns: likewise for columns.
        gaps: for each sum of classes the level of its table and the number of symbols.
        steps: number of the table of the exponents of int8's steps.
        axis: axis of int8's outputs, the first (0) or the last (1).
        lowest: lowest exponent of int8's steps.
    """

    name: str
    shape: tuple[int, ...]
    form: str
    raw_bytes: int
    checksum: int
    values: int = 0
    masked: bool = False
    kept: int | None = None
    rows: int | None = None
    columns: int | None = None
    gaps: tuple[tuple[int, int], ...] = ()
    steps: int | None = None
    axis: int = 1
    lowest: int = 0

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns: all axes but the last, and the last."""
        return math.prod(self.shape[:-1]), self.shape[-1] if self.shape else 1

    @property
    def stored(self) -> int:
        """Number of values."""
        return math.prod(self.shape) if self.kept is None else self.kept

    @property
    def outputs(self) -> int:
        """Number of int8's steps."""
        return self.matrix[1] if self.axis else self.shape[0]

    def runs(self) -> list[tuple[int, int]]:
        """Return table and number of all symbols, in order; tables of gaps come first."""
        rows, columns = self.matrix
        named = [(self.rows, rows), (self.columns, columns), *self.gaps]
        tables = [(table, count) for table, count in named[:2] if table is not None]
        runs = [(table + LEVELS, count) for table, count in tables] + list(self.gaps)
        runs.append((self.values + LEVELS, self.stored))
        return runs + ([(self.steps + LEVELS, self.outputs)] if self.steps is not None else [])

    def to_json(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults."""
        fields = {field.name: field.default for field in dataclasses.fields(self)}
        return {k: v for k, v in vars(self).items() if v != fields[k]}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any], tables: int, most: int) -> "Entry":
        """Check an entry, of at most `most` weights; a ValueError or the like if it is faulty."""
        name = entry["name"]
        if type(name) is not str or not name.isprintable():
            raise ValueError(f"{name!r:.200}: expected a plain name")
        shape = tuple(whole(n, most) for n in entry["shape"])
        gaps = [
            (whole(level, LEVELS - 1), whole(count, most)) for level, count in entry.get("gaps", ())
        ]
        self = cls(**{**entry, "shape": shape, "gaps": tuple(gaps)})
        if len(shape) > 32 or math.prod(max(n, 1) for n in shape) > most:
            raise ValueError(f"shape {list(shape)}")
        cells = math.prod(shape)
        for value, limit in (
            (self.kept, cells),
            (self.values, tables - 1),
            *((table, tables - 1) for table in (self.rows, self.columns, self.steps)),
            (self.axis, 1),
            (self.checksum, 2**32 - 1),
        ):
            if value is not None:
                whole(value, limit)
        exponents = range(values.MIN_EXPONENT, values.MAX_EXPONENT + 1)
        if type(self.lowest) is not int or self.lowest not in exponents:
            raise ValueError(f"lowest exponent {self.lowest!r:.40}")
        if (
            self.masked not in (0, 1)
            or self.form not in values.FORMS
            or self.raw_bytes != self.stored * values.RAW_BYTES[self.form]
            or (self.form == "int8") != (self.steps is not None)
            or (self.form == "int8" and not cells)
            or (self.kept is None and (gaps or self.rows is not None or self.columns is not None))
            or (self.kept is not None and not 0 < len(gaps) <= 2 * positions.MAX_CLASSES)
            or sum(count for _, count in gaps) > (self.kept or 0) + cells
        ):
            raise ValueError(f"{name:.200}: fields that contradict each other")
        return self


def whole(value: Any, most: int) -> int:
    """Return a whole number from 0 to `most`; a ValueError where it is none."""
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{value!r:.40} where a number from 0 to {most} is expected")
    return value


def plan(
    name: str, value: np.ndarray, mask: np.ndarray | None, form: str
) -> tuple[Entry, list[Plane], bytes]:
    """Choose the smaller of all values, and kept ones with their positions.

    Args:
        name: path of the leaf.
        value: float32.
        mask: weights to keep, or None; without one, zeros may be left out.
        form: wanted form of the values.

    Returns:
        An entry whose tables are not numbered yet, the planes of symbols, and the other bytes.
    """
    flat = np.ravel(value)
    flags = np.ravel(mask) != 0 if mask is not None else flat.view(np.uint32) != 0
    kept = np.flatnonzero(flags)
    choices = []
    if len(kept) < flat.size:
        choices.append(encoded(name, value, kept, form))
    if len(kept) == flat.size or mask is None:
        choices.append(encoded(name, value, None, form))
    entry, planes, raw = min(choices, key=_size)
    return dataclasses.replace(entry, masked=mask is not None), planes, raw


def encoded(
    name: str, value: np.ndarray, kept: np.ndarray | None, form: str
) -> tuple[Entry, list[Plane], bytes]:
    """Encode the values at the indices `kept` and these positions, or all values; as `plan`."""
    flat = np.ravel(value)
    entry = Entry(name, value.shape, form, 0, 0)
    rows, columns = entry.matrix
    changes: dict[str, Any] = {}
    planes: list[Plane] = []
    cells = np.arange(flat.size) if kept is None else kept
    if kept is not None:
        classes = positions.choose_classes(kept, rows, columns)
        for field, along in zip(("rows", "columns"), classes, strict=True):
            planes += [Plane(field, along)] if along.any() else []
        order = positions.Order(classes)
        places = np.sort(order.places_of(kept))
        cells = order.cells_at(places)
        symbols, runs = positions.gaps(places, order)
        changes = {"kept": len(kept), "gaps": tuple(runs)}
        planes.append(Plane("", symbols))
    found = flat[cells]
    form = values.form_of(found, form, len(entry.shape) if flat.size else 0)
    if form == "int8":
        # Rows of an embedding are its outputs.
        axis = 0 if entry.name.rpartition("/")[2].startswith("embedding") else 1
        entry = dataclasses.replace(entry, axis=axis)
        output = output_of(cells, entry)
        coded, exponents, lowest = values.quantize(found, output, entry.outputs)
        planes += [Plane("values", coded), Plane("steps", exponents)]
        raw, changes = b"", {**changes, "lowest": lowest}
    else:
        coded, raw = values.split(found, form)
        planes.append(Plane("values", coded))
    return dataclasses.replace(entry, form=form, raw_bytes=len(raw), **changes), planes, raw


def output_of(cells: np.ndarray, entry: Entry) -> np.ndarray:
    """Return the output that each cell belongs to."""
    size = math.prod(entry.shape)
    return cells % entry.outputs if entry.axis else cells // max(size // entry.outputs, 1)


def bits(counts: np.ndarray) -> float:
    """Return the entropy of symbols in bits, of all together."""
    counts = counts[counts > 0]
    return float((counts * np.log2(counts.sum() / counts)).sum())


def _size(choice: tuple[Entry, list[Plane], bytes]) -> float:
    _, planes, raw = choice
    return sum(bits(plane.counts) for plane in planes) + 8 * len(raw)


def share_tables(planes: list[Plane]) -> tuple[list[np.ndarray], dict[int, int]]:
    """Group planes whose symbols are alike enough to be coded with one table.

    Returns:
        Counts of symbols for each table; and the number of the table of each plane, by its `id`.
    """
    tables: list[np.ndarray] = []
    numbers = {}
    for plane in sorted(planes, key=lambda plane: -len(plane.symbols)):
        own = bits(plane.counts) + _BITS_PER_FREQUENCY * np.count_nonzero(plane.counts)
        costs = [
            bits(table + plane.counts)
            - bits(table)
            + _BITS_PER_FREQUENCY * np.count_nonzero(plane.counts[table == 0])
            for table in tables
        ]
        best = int(np.argmin(costs)) if costs else 0
        if costs and (costs[best] <= own or len(tables) == MAX_TABLES):
            tables[best] = tables[best] + plane.counts
        else:
            best = len(tables)
            tables.append(plane.counts)
        numbers[id(plane)] = best
    return tables, numbers


def unpack(
    entry: Entry, take: Callable[[int], np.ndarray], raw: bytes
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return a float32 tensor and its mask (uint8), if it has one.

    Args:
        entry: of the header.
        take: returns the next coded symbols.
        raw: the bytes that are not coded.

    Raises:
        CheckpointError: the content contradicts the entry.
    """
    rows, columns = entry.matrix
    cells = None
    if entry.kept is not None:
        sizes = (entry.rows, rows), (entry.columns, columns)
        classes = positions.Classes(
            *(take(n) if table is not None else np.zeros(n, np.uint8) for table, n in sizes)
        )
        if len(entry.gaps) != classes.sums or max(map(np.max, classes)) >= positions.MAX_CLASSES:
            raise CheckpointError("classes that the header does not have")
        order = positions.Order(classes)
        symbols = take(sum(count for _, count in entry.gaps))
        cells = order.cells_at(positions.places(symbols, entry.gaps, order))
        if len(cells) != entry.kept:
            raise CheckpointError(f"{len(cells)} positions, expected {entry.kept}")
    coded = take(entry.stored)
    if entry.form == "int8":
        exponents = take(entry.outputs)
        every = np.arange(entry.stored) if cells is None else cells
        found = values.dequantize(coded, output_of(every, entry), exponents, entry.lowest)
    else:
        found = values.join(coded, raw, entry.form)
    if cells is None:
        mask = np.ones(entry.shape, np.uint8) if entry.masked else None
        return found.reshape(entry.shape), mask
    tensor = np.zeros(entry.shape, np.float32)
    tensor.reshape(-1)[cells] = found
    if not entry.masked:
        return tensor, None
    mask = np.zeros(entry.shape, np.uint8)
    mask.reshape(-1)[cells] = 1
    return tensor, mask
