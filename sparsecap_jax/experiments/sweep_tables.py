"""Rows of a sweep: those of finished runs, and of a table that another machine has begun."""

import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparsecap_jax.errors import DataError
from sparsecap_jax.files import read_csv, read_settings
from sparsecap_jax.runs.finished import CONFIG

RESULT = "result.json"
TABLE = "results.csv"
Row = dict[str, Any]
_NUMBER = re.compile(r"-?\d{1,18}(\.\d+)?(e[-+]?\d{1,3})?").fullmatch


def finished_rows(workdir: pathlib.Path, labels: Mapping[str, Mapping[str, Any]]) -> dict[str, Row]:
    """Return labels and figures of the finished runs by name; `labels` are those of all runs."""
    files = {name: workdir / name / RESULT for name in labels}
    return {
        name: {**labels[name], **read_settings(file)}
        for name, file in files.items()
        if file.exists()
    }


def finished_config(folder: pathlib.Path) -> dict[str, Any]:
    """Return the config that a run of a sweep with work of its own was finished with."""
    return read_settings(folder / CONFIG)


def read_rows(
    path: pathlib.Path, labels: Mapping[str, Mapping[str, Any]], score: str = "CIDEr"
) -> tuple[dict[str, Row], list[Row]]:
    """Read a table of a sweep, such as one that another machine has begun.

    Args:
        path: CSV file, as `results.csv` of a sweep.
        labels: those of all runs by name, which say which row is whose.
        score: column that must hold a number.

    Returns:
        Rows by the name of the run, and those of no run.

    Raises:
        DataError: it cannot be read, lacks a label, names a run twice, or has a score that is no
            number.
    """
    columns = list(next(iter(labels.values())))
    names = {_key(values, columns): name for name, values in labels.items()}
    rows, others = {}, []
    for number, cells in enumerate(read_csv(path), 1):
        missing = [column for column in columns if cells.get(column) is None]
        if missing or None in cells:
            fault = f"no {missing[0]}" if missing else "more cells than columns"
            raise DataError(f"{path}: row {number}: {fault}; expected a table of this sweep")
        row = {column: _value(text) for column, text in cells.items()}
        if not isinstance(row.get(score), int | float):
            found = cells.get(score)
            raise DataError(f"{path}: row {number}: {score} is {found!r:.80}; expected a number")
        name = names.get(_key(cells, columns))
        if name is None:
            others.append(row)
        elif name in rows:
            raise DataError(f"{path}: row {number}: {name} again; expected one row a run")
        else:
            rows[name] = {**row, **labels[name]}
    return rows, others


def number_in(row: Mapping[str, Any], column: str) -> int | float | None:
    """Return the number in a column, None where there is none."""
    value = row.get(column)
    return value if isinstance(value, int | float) else None


def mean_cell(rows: list[Row], column: str, scale: float = 100.0, digits: int = 1) -> str:
    """Return mean and standard deviation over rows, "" where none has a number."""
    values = [value for row in rows if (value := number_in(row, column)) is not None]
    if not values:
        return ""
    sign = "+" if column.endswith("difference") else ""
    spread = f" ± {scale * np.std(values):.{digits}f}" if len(values) > 1 else ""
    return f"{scale * np.mean(values):{sign}.{digits}f}{spread}"


def _key(values: Mapping[str, Any], columns: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(values[column]) for column in columns)


def _value(text: str | None) -> Any:
    if not text:
        return None
    found = _NUMBER(text)
    if not found:
        return text
    value = int(text) if found[1] is found[2] is None else float(text)
    return value if math.isfinite(value) else text
