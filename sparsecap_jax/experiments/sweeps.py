"""Many runs in one process: trained, scored, collected in one table, drawn (`launch/sweep.py`).

A sweep is a list of runs and a way to draw their results: `SWEEP` of a module of this folder, which
`SWEEPS` lists. Runs share datasets and compiled programs, finished ones are skipped, and rows are
added to `results.csv` as runs finish.
"""

import dataclasses
import importlib
import pathlib
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from sparsecap_jax.commands.evaluate import evaluate_run
from sparsecap_jax.data.datasets import Dataset, load_dataset
from sparsecap_jax.errors import ConfigError, InUseError, SparsecapError
from sparsecap_jax.evaluation.metrics import FAST_METRICS
from sparsecap_jax.files import locked, read_settings, write_json, write_table
from sparsecap_jax.models import model_class
from sparsecap_jax.runs.config import to_json
from sparsecap_jax.runs.loop import train
from sparsecap_jax.runs.recipes import TINY_UP_DOWN, make_config
from sparsecap_jax.runs.run import check_workdir

SWEEPS = ("toy_models", "toy_pruners", "toy_scst")
RESULT = "result.json"
TABLE = "results.csv"
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
        name: its folder below the sweep's: `up_down/supermask/0.95/seed_0`.
        labels: its setting, the first columns of the table.
        config: its config.
        init_from: name of an earlier run of the sweep to start from (`config.train.init_from`).
    """

    name: str
    labels: Mapping[str, Any]
    config: ConfigDict
    init_from: str = ""


def toy_config(seed: int, *words: str, **recipe: Any) -> ConfigDict:
    """Return a config on the toy scenes, by default of a small Up-Down; see `make_config`."""
    recipe = {"model": "up_down", "tiny": TINY_UP_DOWN, "weight_scale": 0.5, **recipe}
    arg = ",".join(["tiny", *filter(None, words)])
    config = make_config(arg, fields={}, pruned={}, optimizer={}, **recipe)
    config.seed = seed
    return config


def score_test_split(directory: pathlib.Path, dataset: Dataset) -> Row:
    """Score the test split by all metrics but METEOR, and count the weights."""
    options = {"metrics": FAST_METRICS, "tokenizer": "python", "report": lambda line: None}
    row = evaluate_run(directory, dataset=dataset, **options)
    return {name: value for name, value in row.items() if name != "text"}


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Runs that belong together.

    Attributes:
        runs: `runs(seeds)` returns the runs for seeds 0..seeds-1 in order; a run comes after the
            one that it starts from.
        draw: `draw(workdir, rows)` draws the finished rows into the sweep's folder.
        evaluate: `evaluate(run directory, dataset)` returns the columns that follow the labels.
    """

    runs: Callable[[int], list[SweepRun]]
    draw: Callable[[pathlib.Path, list[Row]], None]
    evaluate: Callable[[pathlib.Path, Dataset], Row] = score_test_split


def load_sweep(name: str) -> Sweep:
    """Return the sweep of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in SWEEPS:
        raise ConfigError(f"--sweep is {name!r}; expected one of {', '.join(sorted(SWEEPS))}")
    return importlib.import_module(f"sparsecap_jax.experiments.{name}").SWEEP


def run_sweep(
    sweep: Sweep,
    workdir: str | pathlib.Path,
    *,
    seeds: int = 3,
    only: str = "",
    minutes: float | None = None,
    report: Callable[[str], None] = print,
) -> list[Row]:
    """Train and score the runs that are not finished, then draw all that are.

    A finished run keeps its weights, logs and scores, but not its checkpoints. Runs that another
    process trains, and those that start from them, are left to it.

    Args:
        sweep: runs and their pictures.
        workdir: folder to write to; a second call continues there.
        seeds: seeds for each setting.
        only: regular expression that selects runs by name.
        minutes: start no further run after so long; 0 only draws.
        report: takes one line at a time.

    Returns:
        The rows of `results.csv`: labels and figures of every finished run.

    Raises:
        SparsecapError: some runs failed; raised after all others.
    """
    workdir, runs = pathlib.Path(workdir), sweep.runs(seeds)
    datasets, failures, elsewhere = {}, [], set()
    began = time.monotonic()
    for number, run in enumerate(runs):
        directory, config = workdir / run.name, run.config.copy_and_resolve_references()
        if run.init_from:
            config.train.init_from = str(workdir / run.init_from)
        if not re.search(only, run.name) or _is_finished(directory, config):
            continue
        if minutes is not None and time.monotonic() - began >= minutes * 60:
            report(f"{minutes:g} minutes are over; run again to continue")
            break
        try:
            if run.init_from in elsewhere:
                raise InUseError(f"{run.init_from}, which it starts from, is trained elsewhere")
            _take(sweep, directory, config, datasets)
        except InUseError as error:
            elsewhere.add(run.name)
            report(f"[{number + 1}/{len(runs)}] {run.name}: left to another process: {error}")
            continue
        except SparsecapError as error:
            failures.append(f"{run.name}: {error}")
            report(f"[{number + 1}/{len(runs)}] failed: {failures[-1]}")
            continue
        (row,) = finished_rows(workdir, [run])
        report(f"[{number + 1}/{len(runs)}] {run.name}: CIDEr {row['CIDEr']:.3f}")
        write_table(workdir / TABLE, finished_rows(workdir, runs))
    rows = finished_rows(workdir, runs)
    if rows:
        write_table(workdir / TABLE, rows)
        sweep.draw(workdir, rows)
    report(f"{len(rows)} of {len(runs)} runs finished" + (f": {workdir / TABLE}" if rows else ""))
    if failures:
        raise SparsecapError(f"{len(failures)} runs failed: {'; '.join(failures)}")
    return rows


def finished_rows(workdir: pathlib.Path, runs: Sequence[SweepRun]) -> list[Row]:
    """Return labels and figures of the finished runs, in their order."""
    files = [(run, workdir / run.name / RESULT) for run in runs]
    return [{**run.labels, **read_settings(file)} for run, file in files if file.exists()]


def _is_finished(directory: pathlib.Path, config: ConfigDict) -> bool:
    """Return whether a run has its result; one of another config is an error."""
    if not (directory / RESULT).exists():
        return False
    changes = check_workdir(config, directory)
    if changes:
        raise ConfigError(f"{directory}: finished with another config: {changes}")
    return True


def _take(sweep: Sweep, directory: pathlib.Path, config: ConfigDict, datasets: dict) -> None:
    """Train and score a run; `datasets` holds those that are open, by their config."""
    boxes = getattr(model_class(config.model.name), "needs_boxes", False)
    key = (to_json(config.data), boxes)
    if key not in datasets:
        datasets[key] = load_dataset(config.data, need_boxes=boxes)
    dataset = datasets[key]
    began = time.monotonic()
    with locked(directory / RESULT, folder=False):
        if _is_finished(directory, config):  # by another process since
            return
        train(config, directory, lambda line: None, dataset=dataset)
        seconds = round(time.monotonic() - began, 1)
        row = {**sweep.evaluate(directory, dataset), "seconds": seconds}
        write_json(directory / RESULT, row)
        shutil.rmtree(directory / "checkpoints", ignore_errors=True)
