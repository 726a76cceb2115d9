"""Figures of many models, collected in one table: scores, sparsity, sizes, text."""

import dataclasses
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sparsecap_jax.errors import DataError
from sparsecap_jax.evaluation.metrics import ALL_METRICS
from sparsecap_jax.evaluation.tables import MISSING, cell
from sparsecap_jax.pruning.summary import GROUPS

Row = dict[str, Any]

VALIDATION = "validation"
"""Name of the results of validation in training, at the step of the finished weights."""

# Column: its title, decimals, and whether it is among the few of the terminal; CSV has more.
_COLUMNS = {
    "run": ("run", 0, True),
    "status": ("status", 0, True),
    "model": ("model", 0, False),
    "method": ("method", 0, True),
    "results": ("results", 0, True),
    "sparsity": ("sparsity", 3, True),
    "nonzeros": ("nonzeros", 0, True),
    "kept": ("kept", 0, True),
    "prunable": ("prunable", 0, False),
    "parameters": ("parameters", 0, False),
    "bytes": ("bytes", 0, True),
    "images_per_second": ("images/s", 0, False),
    "Bleu_1": ("B-1", 1, False),
    "Bleu_2": ("B-2", 1, False),
    "Bleu_3": ("B-3", 1, False),
    "Bleu_4": ("B-4", 1, True),
    "METEOR": ("METEOR", 1, True),
    "ROUGE_L": ("ROUGE-L", 1, False),
    "CIDEr": ("CIDEr", 1, True),
    "SPICE": ("SPICE", 1, False),
    "words": ("length", 2, False),
    "vocabulary": ("words used", 0, False),
    "vocabulary_coverage": ("vocabulary %", 1, False),
    "reference_coverage": ("references' words %", 1, False),
    "novel": ("novel %", 1, False),
    **{f"{group}_nonzeros": (f"{group} nonzeros", 0, False) for group in GROUPS},
}
_ALL_COLUMNS = (*_COLUMNS, *(f"{group}_parameters" for group in GROUPS))
_TEXTS = ("run", "status", "model", "method", "results")


@dataclasses.dataclass
class Collected:
    """Figures of one model.

    Attributes:
        name: of the run.
        directory: its folder or file.
        figures: columns of the table that do not depend on captions.
        results: for each set of captions, such as `test_beam_2`, scores times 100 and figures of
            the text.
        target: sparsity that was aimed at; None for a dense model.
        tensors: `tensor`, `size` and `sparsity` of each prunable tensor.
        masks: bits of the nonzero weights of each prunable tensor, packed.
        density: places and densities of the nonzero prunable weights.
        layers: for each stack of equal layers their distances, see `layer_distances`.
        curves: names of the CSV logs that there are.
        other_data: the dataset it is scored on, where that is not COCO; "" where it may be.
    """

    name: str
    directory: pathlib.Path
    figures: Row
    results: dict[str, Row] = dataclasses.field(default_factory=dict)
    target: float | None = None
    tensors: list[Row] = dataclasses.field(default_factory=list)
    masks: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    density: tuple[np.ndarray, np.ndarray] | None = None
    layers: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    curves: list[str] = dataclasses.field(default_factory=list)
    other_data: str = ""


def number(content: Mapping[str, Any], key: str, where: Any, expected: str = "a number") -> Any:
    """Return a finite number of a file, None where it is missing or null.

    Raises:
        DataError: it is something else; the message names the file `where`, and the key.
    """
    value = content.get(key)
    if value is None:
        return None
    known = isinstance(value, int | float) and not isinstance(value, bool)
    if not known or abs(value) > 1e15 or not math.isfinite(value):
        raise DataError(f"{where}: {key} is {value!r:.80}; expected {expected}")
    return value


def score_figures(content: Mapping[str, Any], where: Any) -> Row:
    """Return the scores among a file's figures, times 100 as papers print them."""
    scores = {name: number(content, name, where) for name in ALL_METRICS}
    return {name: round(100.0 * value, 4) for name, value in scores.items() if value is not None}


def text_figures(content: Mapping[str, Any], where: Any, words: int | None) -> Row:
    """Return figures of the captions as text, shares in percent.

    Args:
        content: the figures of `text_statistics.describe`, as shares; and `copied`.
        where: the file that they stem from.
        words: of the model's vocabulary, special tokens included; None where tokens are no words.
    """
    found = {name: number(content, name, where) for name in ("words", "vocabulary")}
    shares = {name: number(content, name, where) for name in ("coverage", "copied")}
    if found["vocabulary"] is not None and words and words > 2:
        share = found["vocabulary"] / (words - 2)  # less its start and end, as in the reference
        found["vocabulary_coverage"] = round(100.0 * share, 4)
    if shares["coverage"] is not None:
        found["reference_coverage"] = round(100.0 * shares["coverage"], 4)
    if shares["copied"] is not None:
        found["novel"] = round(100.0 * (1.0 - shares["copied"]), 4)
    return found


def table_rows(runs: Iterable[Collected]) -> list[Row]:
    """Return a row for each model and set of captions, with all columns that any row fills.

    Rows of test splits come first, then other splits, then those of validation in training and of
    models without captions; within each the models' order is kept.
    """
    rows = []
    for run in runs:
        for name, scores in run.results.items() or [("", {})]:
            rows.append({"run": run.name, **run.figures, "results": name or None, **scores})
    rows.sort(key=lambda row: _order(row["results"]))
    filled = [name for name in _ALL_COLUMNS if any(row.get(name) is not None for row in rows)]
    return [{name: row.get(name) for name in filled} for row in rows]


def _order(results: str | None) -> tuple[int, str]:
    name = results or ""
    kinds = ("test", "val_", VALIDATION)
    return next((n for n, kind in enumerate(kinds) if name.startswith(kind)), 3), name


def shown(rows: Sequence[Mapping[str, Any]], brief: bool = False) -> tuple[list[str], list, int]:
    """Return titles, rows of text, and the number of columns that hold text.

    Args:
        rows: of `table_rows`.
        brief: whether to take the few columns that fit a terminal.
    """
    filled = [name for name in (rows[0] if rows else ()) if name in _COLUMNS]
    names = [name for name in filled if not brief or _COLUMNS[name][2]]
    cells = [
        [MISSING if row[name] is None else cell(row[name], _COLUMNS[name][1]) for name in names]
        for row in rows
    ]
    return [_COLUMNS[name][0] for name in names], cells, sum(name in _TEXTS for name in names)
