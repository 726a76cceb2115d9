"""The runs of a sweep: trained, scored, collected in one table (`sparsecap sweep`).

Runs share datasets and compiled programs, finished ones are skipped, and rows are added to
`results.csv` as runs finish. Rows of another machine's table count as finished runs. Several
processes may share a folder: each takes the next run that is free.
"""

import pathlib
import re
import shutil
import time
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from sparsecap_jax.data.datasets import Dataset, load_dataset
from sparsecap_jax.errors import ConfigError, InUseError, SparsecapError
from sparsecap_jax.experiments.sweep_tables import (
    RESULT,
    TABLE,
    Row,
    finished_config,
    finished_rows,
    read_rows,
)
from sparsecap_jax.experiments.sweeps import Sweep, SweepRun
from sparsecap_jax.files import write_json, write_table
from sparsecap_jax.locks import locked
from sparsecap_jax.models import model_class
from sparsecap_jax.runs.config import to_json
from sparsecap_jax.runs.finished import CONFIG, SUMMARY
from sparsecap_jax.runs.loop import train
from sparsecap_jax.runs.run import check_workdir
from sparsecap_jax.text import counted


def run_sweep(
    sweep: Sweep,
    workdir: str | pathlib.Path,
    *,
    seeds: int | None = None,
    only: str = "",
    minutes: float | None = None,
    known: str | pathlib.Path | None = None,
    data_dir: str = "",
    wait: float = 0.0,
    report: Callable[[str], None] = print,
) -> list[Row]:
    """Train and score the runs that are not finished, then draw all that are.

    A finished run keeps its weights, logs and scores, but not its checkpoints. Runs that another
    process trains, and those that need them, are left to it. One that is trained but not scored,
    such as one copied from another sweep, is scored. A run that `known` has, and another
    one needs, is trained where its directory is missing; the known row stays.

    Args:
        sweep: runs and their pictures.
        workdir: folder to write to; a second call continues there.
        seeds: seeds for each setting; None: the sweep's.
        only: regular expression that selects runs by name.
        minutes: start no further run after so long; 0 only draws.
        known: table whose rows are finished runs, see `sweep_tables.read_rows`; its rows of other
            runs are kept in `results.csv`, and not drawn.
        data_dir: folder of the dataset, instead of the configs'.
        wait: seconds between looks at runs that other processes train, until all are finished;
            those of a process that has died are taken up. 0: do not wait.
        report: takes one line at a time.

    Returns:
        The drawn rows of `results.csv`: labels and figures of every finished run.

    Raises:
        SparsecapError: some runs failed; raised after all others.
    """
    work = _Work(sweep, pathlib.Path(workdir), sweep.runs(seeds or sweep.seeds), data_dir, known)
    while work.take_all(only, minutes, report) and wait:
        time.sleep(wait)
    rows = list(work.write_rows().values())
    if rows:
        sweep.draw(work.workdir, rows)
    table = f": {work.workdir / TABLE}" if rows else ""
    report(f"{len(rows)} of {counted(len(work.runs), 'run')} finished{table}")
    if failures := [f"{name}: {error}" for name, error in work.failures.items()]:
        raise SparsecapError(f"{counted(len(failures), 'run')} failed: {'; '.join(failures)}")
    return rows


class _Work:
    """A sweep under way; `known` holds rows by name, `runs` all runs.

    Rows of an earlier table whose run directories are gone are drawn and kept until their runs are
    taken again.
    """

    def __init__(
        self,
        sweep: Sweep,
        workdir: pathlib.Path,
        runs: list[SweepRun],
        data_dir: str,
        known: str | pathlib.Path | None,
    ):
        self.sweep, self.workdir, self.data_dir = sweep, workdir, data_dir
        self.runs = {run.name: run for run in runs}
        self.labels = {run.name: run.labels for run in runs}
        self.known: dict[str, Row] = {}
        self._earlier: dict[str, Row] = {}
        self._others: list[Row] = []
        if (workdir / TABLE).exists():
            path = workdir / TABLE
            self._earlier, self._others = read_rows(path, self.labels, sweep.score)
        if known:
            path = pathlib.Path(known)
            self.known, self._others = read_rows(path, self.labels, sweep.score)
        self._datasets: dict[Any, Dataset] = {}
        self.failures: dict[str, SparsecapError] = {}
        self._held: set[str] = set()
        self._told: set[str] = set()
        self._began = time.monotonic()

    def take_all(self, only: str, minutes: float | None, report: Callable[[str], None]) -> bool:
        """Take every run that is not finished, in order, until so many minutes are over.

        Returns:
            Whether other processes have runs that are left.
        """
        self._held = set()
        for number, (name, run) in enumerate(self.runs.items(), 1):
            if not re.search(only, name) or name in self.known or name in self.failures:
                continue
            if self.is_finished(run):
                continue
            if minutes is not None and time.monotonic() - self._began >= minutes * 60:
                report(f"{minutes:g} minutes are over; run again to continue")
                return False
            place = f"[{number}/{len(self.runs)}]"
            try:
                self.take(run)
            except InUseError as error:
                if name not in self._told:
                    report(f"{place} {name}: left to another process: {error}")
                self._told.add(name)
            except SparsecapError as error:
                report(f"{place} failed: {name}: {error}")
            else:
                score = self.sweep.score
                report(f"{place} {name}: {score} {self.write_rows()[name][score]:.3f}")
        return bool(self._held)

    def write_rows(self) -> dict[str, Row]:
        """Write the table, and return its rows by the name of the run."""
        finished = finished_rows(self.workdir, self.labels)
        found = {**self._earlier, **finished, **self.known}
        rows = {name: found[name] for name in self.runs if name in found}
        if rows:
            write_table(self.workdir / TABLE, [*rows.values(), *self._others])
        return rows

    def is_finished(self, run: SweepRun) -> bool:
        """Return whether a run has its result; one of another config is an error."""
        return self._has(RESULT, run)

    def take(self, run: SweepRun) -> None:
        """Train and score a run, and before it those that it needs."""
        try:
            for name, reason in ((run.init_from, "it starts from"), (run.twin, "it needs")):
                if name in self._held:
                    raise InUseError(f"{name}, which {reason}, is trained elsewhere")
                if name in self.failures:
                    raise SparsecapError(f"{name}, which {reason}, failed")
                if name and not self.is_finished(self.runs[name]):
                    self.take(self.runs[name])
            self._train(run)
        except InUseError:
            self._held.add(run.name)
            raise
        except SparsecapError as error:
            self.failures[run.name] = error
            raise

    def _has(self, file: str, run: SweepRun) -> bool:
        """Return whether a run has a file that is written at its end, by a run of its config."""
        directory = self.workdir / run.name
        if not (directory / file).exists():
            return False
        if self.sweep.work:
            if (found := finished_config(directory)) != run.config.to_dict():
                raise ConfigError(f"{directory}: finished with another config: {found}")
            return True
        changes = check_workdir(self._config(run), directory)
        if changes := [change for change in changes if not change.startswith("data.")]:
            raise ConfigError(f"{directory}: finished with another config: {changes}")
        return True

    def _config(self, run: SweepRun) -> ConfigDict:
        config = run.config.copy_and_resolve_references()
        if run.init_from:
            config.train.init_from = str(self.workdir / run.init_from)
        if self.data_dir and "data" in config:
            config.data.dir = self.data_dir
        return config

    def _dataset(self, config: ConfigDict) -> Dataset:
        """Open the dataset of a config; those that are open are kept."""
        boxes = getattr(model_class(config.model.name), "needs_boxes", False)
        key = (to_json(config.data), boxes)
        if key not in self._datasets:
            self._datasets[key] = load_dataset(config.data, need_boxes=boxes)
        return self._datasets[key]

    def _train(self, run: SweepRun) -> None:
        directory, config = self.workdir / run.name, self._config(run)
        began = time.monotonic()
        with locked(directory / RESULT, folder=False):
            if self.is_finished(run):  # by another process since
                return
            if self.sweep.work:
                row = self.sweep.work(config)
                write_json(directory / CONFIG, config.to_dict())
                write_json(directory / RESULT, row | {"seconds": _since(began)})
                return
            dataset = self._dataset(config)
            if not self._has(SUMMARY, run):
                train(config, directory, lambda line: None, dataset=dataset)
            seconds = _since(began)
            twin = self.workdir / run.twin if run.twin else None
            row = {**self.sweep.evaluate(directory, dataset, twin), "seconds": seconds}
            write_json(directory / RESULT, row)
            shutil.rmtree(directory / "checkpoints", ignore_errors=True)


def _since(began: float) -> float:
    return round(time.monotonic() - began, 1)
