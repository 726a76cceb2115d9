"""Positions of kept weights as gaps between them, ordered by how dense rows and columns are.

A matrix `[R, C]` (all axes but the last are rows) gets a class for each row and each column, so
that cells of equal sums of classes are about equally dense. Cells are ordered by that sum, then by
the row's class, then row by row; within a sum, kept cells are as good as independent, and the gaps
between them are geometrically distributed.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.model_files.range_coder import escape, level_of

MAX_CLASSES = 32

_STEPS = (np.inf, 1.0, 0.5, 0.25)  # of log density between classes
_BITS_PER_CLASS = 24  # what an entry of a list of levels or of a table takes in the header


class Classes(NamedTuple):
    """Classes of rows, uint8 `[R]`, and of columns, uint8 `[C]`."""

    rows: np.ndarray
    columns: np.ndarray

    @property
    def sums(self) -> int:
        """How many sums of two classes there can be."""
        return int(self.rows.max(initial=0)) + int(self.columns.max(initial=0)) + 1


class Order:
    """The order of the cells of a matrix with some `Classes`.

    Cells lie in blocks, one for each class of rows and of columns.

    Attributes:
        cells: int `[S]`, number of cells for each sum of classes.
    """

    def __init__(self, classes: Classes):
        self.classes = classes
        if classes.sums == 1:  # row by row
            self.cells = np.array([len(classes.rows) * len(classes.columns)])
            return
        counts = [np.bincount(axis, minlength=1) for axis in classes]
        self._row_class, self._column_class = (
            grid.ravel() for grid in np.indices([len(count) for count in counts])
        )
        sums = self._row_class + self._column_class
        sizes = np.outer(*counts).ravel()
        self.cells = np.bincount(sums, sizes, classes.sums).astype(np.int64)
        by_sum = np.lexsort((self._row_class, sums))
        self._row_class, self._column_class = self._row_class[by_sum], self._column_class[by_sum]
        self._starts = np.cumsum(sizes[by_sum]) - sizes[by_sum]
        # Rows and columns in order of their classes, and where each class starts.
        self._ordered = [np.argsort(axis, kind="stable") for axis in classes]
        self._first = [np.cumsum(count) - count for count in counts]
        self._widths = counts[1]

    def places_of(self, flat: np.ndarray) -> np.ndarray:
        """Return the places in this order of cells, given as row-major indices."""
        if len(self.cells) == 1:
            return flat
        row, column = np.divmod(flat, len(self.classes.columns))
        number = np.empty((len(self._first[0]), len(self._first[1])), np.int64)
        number[self._row_class, self._column_class] = self._starts
        row_class, column_class = self.classes.rows[row], self.classes.columns[column]
        ranks = [np.argsort(ordered) for ordered in self._ordered]
        in_row = ranks[0][row] - self._first[0][row_class]
        in_column = ranks[1][column] - self._first[1][column_class]
        return number[row_class, column_class] + in_row * self._widths[column_class] + in_column

    def cells_at(self, places: np.ndarray) -> np.ndarray:
        """Return the row-major indices of the cells at some places, which ascend."""
        if len(self.cells) == 1:
            return places
        bounds = np.searchsorted(places, self._starts)
        counts = np.diff(bounds, append=len(places))
        used = np.flatnonzero(counts)
        counts, start = counts[used], self._starts[used]
        row_class, column_class = self._row_class[used], self._column_class[used]
        row, column = np.divmod(
            places - np.repeat(start, counts), np.repeat(self._widths[column_class], counts)
        )
        row += np.repeat(self._first[0][row_class], counts)
        column += np.repeat(self._first[1][column_class], counts)
        return self._ordered[0][row] * len(self.classes.columns) + self._ordered[1][column]


def choose_classes(flat: np.ndarray, rows: int, columns: int) -> Classes:
    """Return the classes that code the kept cells, given row by row, in the fewest bits."""
    row, column = np.divmod(flat, columns)
    axes = [
        [_classes(index, size, step) for step in _STEPS]
        for index, size in ((row, rows), (column, columns))
    ]
    best, fewest = Classes(axes[0][0], axes[1][0]), np.inf
    for row_classes in axes[0]:
        for column_classes in axes[1]:
            classes = Classes(row_classes, column_classes)
            kept = np.bincount(row_classes[row].astype(np.int64) + column_classes[column])
            bits = _bits(classes, np.pad(kept, (0, classes.sums - len(kept))))
            if bits < fewest:
                best, fewest = classes, bits
    return best


def _classes(index: np.ndarray, size: int, step: float) -> np.ndarray:
    """Round log densities of rows or columns to multiples of `step`; the sparsest class is 0."""
    counts = np.bincount(index, minlength=size)
    logs = np.log((counts + 0.5) / (counts.mean() + 0.5)) / step
    logs = np.rint(logs - logs.min()) if np.isfinite(step) else np.zeros(size)
    return np.clip(logs, 0, MAX_CLASSES - 1).astype(np.uint8)


def _bits(classes: Classes, kept: np.ndarray) -> float:
    """Estimate the size of classes, lists and positions."""
    cells = np.maximum(Order(classes).cells, 1)
    density = np.clip(kept / cells, 1e-9, 1 - 1e-9)
    bits = -(cells * (density * np.log2(density) + (1 - density) * np.log2(1 - density))).sum()
    for axis in classes:
        counts = np.bincount(axis)
        counts = counts[counts > 0]
        bits += (counts * np.log2(len(axis) / counts)).sum() + _BITS_PER_CLASS * len(counts)
    return bits + _BITS_PER_CLASS * classes.sums


def gaps(places: np.ndarray, order: Order) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Return kept places as gaps.

    Returns:
        Symbols, uint8; and for each sum of classes the level of its `gap_table` and the number of
        symbols.
    """
    ends = np.cumsum(order.cells)
    bounds = [0, *np.searchsorted(places, ends).tolist()]
    parts, runs = [np.empty(0, np.uint8)], []
    for number, (start, end) in enumerate(itertools.pairwise(bounds)):
        cells = int(order.cells[number])
        level = level_of(end - start, cells)
        first = ends[number] - cells
        skipped, gap = np.divmod(np.diff(places[start:end], prepend=first - 1) - 1, escape(level))
        symbols = np.full(len(gap) + int(skipped.sum()), escape(level), np.uint8)
        symbols[np.cumsum(skipped + 1) - 1] = gap
        parts.append(symbols)
        runs.append((level, len(symbols)))
    return np.concatenate(parts), runs


def places(symbols: np.ndarray, runs: Sequence[tuple[int, int]], order: Order) -> np.ndarray:
    """Return the places, int64 and ascending, that `gaps` were made of.

    Raises:
        CheckpointError: they lie past the end of the cells.
    """
    levels, counts = np.array(runs, np.int64).reshape(-1, 2).T
    escapes = np.array([escape(int(level)) for level in levels])
    is_gap = symbols != np.repeat(escapes, counts)
    reached = np.cumsum(symbols + is_gap, dtype=np.int64)
    before = np.concatenate([[0], reached])[np.cumsum(counts) - counts]
    starts = np.cumsum(order.cells) - order.cells
    last = np.concatenate([[0], reached])[np.cumsum(counts)]
    if np.any(last - before > order.cells):
        raise CheckpointError("positions lie past the end of the matrix")
    return (reached + np.repeat(starts - before - 1, counts))[is_gap]
