"""Scores of several runs in one table (`sparsecap evaluate --checkpoint=A --checkpoint=B`)."""

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sparsecap_jax.commands.evaluate import evaluate_run
from sparsecap_jax.evaluation.tables import cell, text_table
from sparsecap_jax.files import write_table
from sparsecap_jax.runs import processes

COLUMNS = (
    *("sparsity", "nonzeros", "bytes"),
    *("CIDEr", "Bleu_1", "Bleu_4", "METEOR", "ROUGE_L"),
)
"""Figures of a table."""


def evaluate_runs(
    checkpoints: Sequence[str | pathlib.Path],
    *,
    output: str | pathlib.Path | None = None,
    report: Callable[[str], None] = print,
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """Score several runs, one after the other, and report a table with a row for each.

    Args:
        checkpoints: run directories, or names.
        output: folder for `scores.csv` (the table) and a folder of results for each run; by
            default results go to the run directories.
        report: takes one line at a time.
        **options: see `evaluate_run`.

    Returns:
        The result of each run by its name, see `evaluate_run`.
    """
    paths = [os.path.abspath(checkpoint) for checkpoint in checkpoints]
    names = [pathlib.Path(path).name for path in paths]
    if len({*names}) < len({*paths}):
        common = os.path.commonpath(map(os.path.dirname, paths))
        names = [os.path.relpath(path, common).replace(os.sep, "_") for path in paths]
    report = report if processes.is_first() else lambda line: None
    results: dict[str, dict[str, Any]] = {}
    for name, checkpoint in zip(names, checkpoints, strict=True):
        folder = None if output is None else pathlib.Path(output, name)
        report(f"--- {checkpoint}")
        results[name] = evaluate_run(checkpoint, output=folder, report=report, **options)
    report(format_table(results))
    if output is not None and processes.is_first():
        columns = ("images", *COLUMNS)
        rows = [{"run": n, **{c: row.get(c) for c in columns}} for n, row in results.items()]
        write_table(pathlib.Path(output, "scores.csv"), rows)
        report(f"wrote {output}/scores.csv")
    return results


def format_table(results: Mapping[str, Mapping[str, Any]], columns: Sequence[str] = COLUMNS) -> str:
    """Return some figures of results as a table of text, one line a model."""
    rows = [[name, *(cell(row.get(c)) for c in columns)] for name, row in results.items()]
    return text_table(["", *columns], rows)
