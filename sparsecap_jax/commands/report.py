"""Sparsity report of a finished run, or a table of many models (`sparsecap report`)."""

import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.evaluation.sparsity_report import (
    FOLDER,
    PICTURE,
    TENSORS,
    write_sparsity_report,
)
from sparsecap_jax.files import absent
from sparsecap_jax.pruning.summary import ALL, PRUNABLE, weight_counts
from sparsecap_jax.runs.directory import load_run, prunable_masks, steps_done
from sparsecap_jax.runs.finished import INITIAL_WEIGHTS, MODEL, finished_weights
from sparsecap_jax.runs.published import resolve_run, results_folder
from sparsecap_jax.runs.weights import load_weights

OUTPUT = "report"


def report_runs(
    sources: Sequence[str | pathlib.Path],
    output: str | pathlib.Path | None = None,
    *,
    published: bool = False,
    report: Callable[[str], None] = print,
) -> None:
    """Write the sparsity report of one finished run, or else collect all runs in one table.

    Args:
        sources: see `collect.collect_runs`.
        output: folder for the table and its charts, by default `report`; given, or with
            `published`, one run makes a table too.
        published: see `collect.collect_runs`.
        report: takes one line at a time.

    Raises:
        SparsecapError: a source is no run and holds none, or a single run is damaged.
    """
    from sparsecap_jax.commands.collect import collect_runs
    from sparsecap_jax.runs.collection import find_runs

    if len(sources) == 1 and output is None and not published:
        run = resolve_run(sources[0])
        if find_runs(sources[0]) == [run] and finished_weights(run) is not None:
            report_run(sources[0], report)
            return
    collect_runs(sources, output or OUTPUT, published=published, report=report)


def report_run(directory: str | pathlib.Path, report: Callable[[str], None] = print) -> None:
    """Write the sparsity report of a finished run: `sparsity/tensors.csv` and `report.png`.

    A dense run has a report on the weights that could be pruned. A run without logs or initial
    weights, such as an imported one, has a report without their curve and density.

    Args:
        directory: the run directory, or the name of a captioner that comes with the package, whose
            report goes to `NAME_sparsity/` in the working folder.
        report: takes one line at a time.

    Raises:
        CheckpointError: the run is not finished, or its weights do not fit its config.
        ConfigError, DataError: its tokenizer is broken, or its `summary.json` is.
    """
    run, directory = directory, resolve_run(directory)
    if not directory.exists():
        raise CheckpointError(absent(directory, "a run"))
    if finished_weights(directory) is None:
        raise CheckpointError(f"{directory}: no finished run: expected {MODEL} in it")
    loaded = load_run(directory)
    masks = prunable_masks(loaded.params, loaded.masks, loaded.config.pruner)
    weights = {"params": loaded.params, "masks": masks}
    initial, steps = None, steps_done(directory)
    if (directory / INITIAL_WEIGHTS).exists():
        initial = load_weights(directory / INITIAL_WEIGHTS, weights["params"])["params"]
    step = steps[1] if steps else None
    folder = results_folder(run, FOLDER)
    rows = write_sparsity_report(directory, **weights, initial=initial, step=step, folder=folder)
    for line in layer_lines(rows):
        report(line)
    rounded = weight_counts(loaded.params, loaded.masks)
    if "kept" in rounded:
        zeros = rounded["kept"] - rounded["nonzeros"]
        report(
            f"{zeros:,} of {rounded['kept']:,} kept weights are 0 (rounding can make small ones 0)"
        )
    report(f"wrote {folder / TENSORS} and {folder / PICTURE}")


def layer_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line for each prunable tensor of `pruning.summarize`, and for the model."""
    for row in rows:
        if row["prunable"] or row["tensor"] == ALL:
            name = {PRUNABLE: "all prunable weights", ALL: "all weights"}.get(row["tensor"])
            counts = f"{row['nonzeros']:>11,} of {row['size']:>11,} kept"
            yield f"{row['sparsity']:8.4%} sparse  {counts}  {name or row['tensor']}"
