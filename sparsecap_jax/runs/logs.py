"""Logs of a run in training: CSV tables, TensorBoard events and lines of progress."""

import csv
import datetime
import pathlib
import time
from collections.abc import Mapping

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from sparsecap_jax.files import named_errors, read_csv, write_table
from sparsecap_jax.runs.run import Run

_SHOWN = ("loss", "reward", "baseline", "sparsity")  # on the line of progress


class Logs:
    """The logs of a run: `train.csv`, `validation.csv`, TensorBoard events, lines of progress.

    Args:
        run: the run.
        first_step: step that training continues from; rows of later steps (written before an
            interruption, after the last checkpoint) are dropped.
    """

    def __init__(self, run: Run, first_step: int):
        self._run = run
        self._folder = run.workdir / "tensorboard"
        self._folder.mkdir(parents=True, exist_ok=True)
        # tensorboardX's SummaryWriter writes in a thread, and waits for ever once that has failed.
        self._events = EventsWriter(str(self._folder / "events"))
        start = SessionLog(status=SessionLog.START)  # hides what was written after the checkpoint
        self._events.write_event(Event(step=first_step + 1, session_log=start))
        self._columns: dict[pathlib.Path, list[str]] = {}
        for path in run.workdir.glob("*.csv"):
            rows = [row for row in read_csv(path) if int(row["step"]) <= first_step]
            self._columns[path] = write_table(path, rows)
        self.skip(first_step)

    def write(self, table: str, step: int, values: Mapping[str, float | None]) -> None:
        """Append one row of `values` at `step` to `table` ("train" or "validation")."""
        path = self._run.workdir / f"{table}.csv"
        row = {"step": step, **{k: "" if v is None else f"{v:.7g}" for k, v in values.items()}}
        if row.keys() <= set(self._columns.get(path, ())):
            with named_errors(path), path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns[path], restval="").writerow(row)
        else:
            rows = read_csv(path) if path.exists() else []
            self._columns[path] = write_table(path, [*rows, row])
        with named_errors(self._folder):
            for key, value in values.items():
                if value is not None:
                    summary, now = scalar(f"{table}/{key}", value), time.time()
                    self._events.write_event(Event(step=step, wall_time=now, summary=summary))

    def progress(self, step: int, values: Mapping[str, float]) -> None:
        """Log `values` of training at `step`, and report them with the speed since the last."""
        last_step, last_time = self._mark
        self.skip(step)
        seconds = max(self._mark[1] - last_time, 1e-9) / max(step - last_step, 1)
        total, rate = self._run.total_steps, self._run.config.data.batch_size / seconds
        eta = datetime.timedelta(seconds=round(seconds * (total - step)))
        self.write("train", step, {**values, "images_per_second": rate})
        shown = " | ".join(f"{key} {values[key]:.4g}" for key in _SHOWN if key in values)
        self._run.report(f"step {step}/{total} | {rate:.0f} images/s | ETA {eta} | {shown}")

    def close(self) -> None:
        """Flush and close the TensorBoard events."""
        with named_errors(self._folder):
            self._events.close()

    def skip(self, step: int) -> None:
        """Leave the time since the last call out of the rate (validation, checkpoints)."""
        self._mark = (step, time.monotonic())
