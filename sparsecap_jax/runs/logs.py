"""Logs of a run in training: CSV tables, TensorBoard events and lines of progress."""

import csv
import datetime
import logging
import pathlib
import re
import time
from collections.abc import Mapping
from typing import Any

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from sparsecap_jax.files import named_errors, read_bytes, write_table
from sparsecap_jax.runs.run import Run
from sparsecap_jax.training.optimizers import make_schedule

_NUMBER = re.compile(r"(-?(\d+(\.\d+)?(e[-+]\d+)?|inf)|nan)?").fullmatch
TABLES = ("train", "validation", "sparsity")
# On the line of progress; `loss`, the caption loss with the pruner's penalty, where it is all.
_SHOWN = ("caption_loss", "reward", "baseline", "sparsity")


class Logs:
    """The logs of a run: CSV tables, TensorBoard events, lines of progress.

    `train.csv` and `validation.csv` have a column for each metric, `sparsity.csv` one for each
    tensor that is pruned.

    Args:
        run: the run.
        first_step: step that training continues from; rows of later steps (written before an
            interruption, after the last checkpoint) are dropped, and rows that are damaged.
        masks: number of weights that have masks, of which `sparsity` is the share removed.
    """

    def __init__(self, run: Run, first_step: int, masks: int = 0):
        self._run, self._masks = run, masks
        self._folder = run.workdir / "tensorboard"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._events = EventsWriter(
            str(self._folder / "events")
        )  # in step with us: no queue, no thread
        start = SessionLog(status=SessionLog.SessionStatus.Value("START"))
        self._event(first_step + 1, session_log=start)  # later points are void
        config = run.config
        self._learning_rate = make_schedule(
            config.optimizer, run.total_steps, run.steps_per_epoch, config.model.get("d_model")
        )
        self._columns: dict[pathlib.Path, list[str]] = {}
        for path in (run.workdir / f"{table}.csv" for table in TABLES):
            if path.exists():
                rows = [row for row in sound_rows(path) if int(row["step"]) <= first_step]
                self._columns[path] = write_table(path, rows)
        self.skip(first_step)

    def write(self, table: str, step: int, values: Mapping[str, float | None]) -> None:
        """Append one row of `values` at `step` to `table`, a CSV file."""
        path = self._run.workdir / f"{table}.csv"
        row = {"step": step, **{k: "" if v is None else f"{v:.7g}" for k, v in values.items()}}
        if row.keys() <= set(self._columns.get(path, ())):
            with named_errors(path), path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns[path], restval="").writerow(row)
        else:
            rows = sound_rows(path) if path.exists() else []
            self._columns[path] = write_table(path, [*rows, row])
        for key, value in values.items():
            if value is not None:
                self._event(step, summary=summary.scalar(f"{table}/{key}", value))

    def progress(self, step: int, values: Mapping[str, float]) -> None:
        """Log `values` of training at `step`, and report them with the speed since the last."""
        last_step, last_time = self._mark
        self.skip(step)
        seconds = max(self._mark[1] - last_time, 1e-9) / max(step - last_step, 1)
        total, rate = self._run.total_steps, self._run.images_per_step / seconds
        eta = datetime.timedelta(seconds=round(seconds * (total - step)))
        learning_rate = float(self._learning_rate(step - 1))  # of the update that ended in `step`
        row = {**values, "learning_rate": learning_rate, "images_per_second": rate}
        self.write("train", step, row)
        keys = _SHOWN if "caption_loss" in values else ("loss", *_SHOWN)
        shown = " | ".join(f"{key} {values[key]:.4g}" for key in keys if key in values)
        shown += of_masks(self._masks) if "sparsity" in values else ""
        self._run.report(f"step {step}/{total} | {rate:.0f} images/s | ETA {eta} | {shown}")

    def flush(self) -> None:
        """Put the TensorBoard events on disk."""
        with named_errors(self._folder):
            self._events.flush()

    def close(self) -> None:
        """Flush and close the TensorBoard events."""
        with named_errors(self._folder):
            self._events.close()

    def skip(self, step: int) -> None:
        """Leave the time since the last call out of the rate (validation, checkpoints)."""
        self._mark = (step, time.monotonic())

    def _event(self, step: int, **content) -> None:
        with named_errors(self._folder):
            self._events.write_event(Event(wall_time=time.time(), step=step, **content))


def _nothing(*_: Any, **__: Any) -> None:
    pass


class NoLogs(Logs):
    """Those of processes other than the first, which write nothing."""

    def __init__(self):
        pass

    def write(self, table: str, step: int, values: Mapping[str, float | None]) -> None:
        """Do nothing; so do the others."""

    progress = flush = close = skip = _nothing


def of_masks(count: int) -> str:
    """Return what follows a sparsity on a line: its denominator, all weights that have masks."""
    return f" of {count:,} weights with masks" if count else ""


def sound_rows(path: pathlib.Path) -> list[dict[str, str]]:
    """Return the whole rows of a table; a power cut leaves half a line, or NUL bytes."""
    lines = read_bytes(path, "a table").decode("utf-8", "replace").split("\n")
    columns, *cells = [line.rstrip("\r").split(",") for line in lines[:-1]] or [[]]
    whole = [row for row in cells if len(row) == len(columns) and all(map(_NUMBER, row))]
    rows = [dict(zip(columns, row, strict=True)) for row in whole]
    rows = [row for row in rows if row.get("step", "").isdecimal() and len(row["step"]) < 19]
    damaged = max(len(lines) - 2, 0) - len(rows) + bool(lines[-1])
    if damaged:
        logging.getLogger(__name__).warning("%s: %d damaged rows left out", path, damaged)
    return rows
