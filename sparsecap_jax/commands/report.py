"""Sparsity report of a finished run (`launch/report.py`)."""

import pathlib
from collections.abc import Callable

from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.evaluation.sparsity_report import FOLDER, write_sparsity_report
from sparsecap_jax.files import read_json
from sparsecap_jax.pruning.summary import ALL, PRUNABLE
from sparsecap_jax.runs.directory import INITIAL_WEIGHTS, WEIGHTS
from sparsecap_jax.runs.published import resolve_run
from sparsecap_jax.runs.weights import load_weights


def report_run(directory: str | pathlib.Path, report: Callable[[str], None] = print) -> None:
    """Write the sparsity report of a finished run: `sparsity/tensors.csv` and `report.png`.

    Args:
        directory: the run directory, or the name of a captioner that comes with the package.
        report: takes one line at a time.

    Raises:
        CheckpointError: the run is not finished, has no masks, or lacks its initial weights.
    """
    directory = resolve_run(directory)
    if not (directory / WEIGHTS).exists():
        raise CheckpointError(f"{directory}: no finished run: {WEIGHTS} is missing")
    weights = load_weights(directory / WEIGHTS)
    if not weights["masks"]:
        raise CheckpointError(f"{directory}: the model is dense; there are no masks to report")
    initial = load_weights(directory / INITIAL_WEIGHTS)["params"]
    summary = read_json(directory / "summary.json")
    step = summary["step"] if summary["best_step"] is None else summary["best_step"]
    rows = write_sparsity_report(directory, weights["params"], weights["masks"], initial, step)
    for row in rows:
        if row["prunable"] or row["tensor"] == ALL:
            name = {PRUNABLE: "all prunable weights", ALL: "all weights"}.get(row["tensor"])
            counts = f"{row['nonzeros']:>11,} of {row['size']:>11,} kept"
            report(f"{row['sparsity']:8.4%} sparse  {counts}  {name or row['tensor']}")
    report(f"wrote {directory / FOLDER}/tensors.csv and report.png")
