"""Logs of a run in training: CSV tables, TensorBoard events and a progress line."""

import csv
import datetime
import pathlib
import time
from collections.abc import Mapping

from tensorboardX import SummaryWriter

from sparsecap_jax.files import read_csv, write_table


class Logs:
    """The logs of one run directory: `train.csv`, `validation.csv` and TensorBoard events.

    Args:
        workdir: the run directory.
        first_step: step that training continues from; rows of later steps (written before an
            interruption, after the last checkpoint) are dropped.
    """

    def __init__(self, workdir: str | pathlib.Path, first_step: int = 0):
        self._workdir = pathlib.Path(workdir)
        self._events = SummaryWriter(str(self._workdir / "tensorboard"), purge_step=first_step + 1)
        self._columns: dict[pathlib.Path, list[str]] = {}
        for path in self._workdir.glob("*.csv"):
            self._rewrite(path, [row for row in read_csv(path) if int(row["step"]) <= first_step])

    def write(self, table: str, step: int, values: Mapping[str, float | None]) -> None:
        """Append one row of `values` at `step` to `table` ("train" or "validation")."""
        path = self._workdir / f"{table}.csv"
        row = {"step": step, **{k: "" if v is None else f"{v:.7g}" for k, v in values.items()}}
        if row.keys() <= set(self._columns.get(path, ())):
            with path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns[path], restval="").writerow(row)
        else:
            self._rewrite(path, [*(read_csv(path) if path.exists() else []), row])
        for key, value in values.items():
            if value is not None:
                self._events.add_scalar(f"{table}/{key}", value, step)

    def _rewrite(self, path: pathlib.Path, rows: list[dict]) -> None:
        write_table(path, rows)
        self._columns[path] = list(dict.fromkeys(key for row in rows for key in row))

    def close(self) -> None:
        """Flush and close the TensorBoard events."""
        self._events.close()


class Progress:
    """Speed and progress of a run of `total_steps` that this process continues at `first_step`."""

    def __init__(self, total_steps: int, first_step: int, images_per_step: int):
        self._total, self._images = total_steps, images_per_step
        self.skip(first_step)

    def line(self, step: int, values: Mapping[str, float]) -> tuple[str, float]:
        """Return the progress line at `step` and the images per second since the last call."""
        last_step, last_time = self._mark
        now = time.monotonic()
        self._mark = (step, now)
        seconds = max(now - last_time, 1e-9) / max(step - last_step, 1)
        eta = datetime.timedelta(seconds=round(seconds * (self._total - step)))
        rate = self._images / seconds
        shown = " | ".join(f"{key} {value:.4g}" for key, value in values.items())
        return f"step {step}/{self._total} | {rate:.0f} images/s | ETA {eta} | {shown}", rate

    def skip(self, step: int) -> None:
        """Leave the time since the last call out of the rate (validation, checkpoints)."""
        self._mark = (step, time.monotonic())
