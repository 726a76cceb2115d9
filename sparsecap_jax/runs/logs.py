"""Logs of a run in training: CSV tables, TensorBoard events and lines of progress."""

import csv
import datetime
import pathlib
import time
from collections.abc import Mapping

from tensorboardX import SummaryWriter

from sparsecap_jax.files import read_csv, write_table
from sparsecap_jax.runs.run import Run
from sparsecap_jax.training.optimizers import make_schedule

# On the line of progress; `loss`, the caption loss with the pruner's penalty, where it is all.
_SHOWN = ("caption_loss", "reward", "baseline", "sparsity")


class Logs:
    """The logs of a run: CSV tables, TensorBoard events, lines of progress.

    `train.csv` and `validation.csv` have a column for each metric, `sparsity.csv` one for each
    tensor that is pruned.

    Args:
        run: the run.
        first_step: step that training continues from; rows of later steps (written before an
            interruption, after the last checkpoint) are dropped.
    """

    def __init__(self, run: Run, first_step: int):
        self._run = run
        folder = str(run.workdir / "tensorboard")
        self._events = SummaryWriter(folder, purge_step=first_step + 1)
        config = run.config
        self._learning_rate = make_schedule(
            config.optimizer, run.total_steps, run.steps_per_epoch, config.model.get("d_model")
        )
        self._columns: dict[pathlib.Path, list[str]] = {}
        for path in run.workdir.glob("*.csv"):
            rows = [row for row in read_csv(path) if int(row["step"]) <= first_step]
            self._columns[path] = write_table(path, rows)
        self.skip(first_step)

    def write(self, table: str, step: int, values: Mapping[str, float | None]) -> None:
        """Append one row of `values` at `step` to `table`, a CSV file."""
        path = self._run.workdir / f"{table}.csv"
        row = {"step": step, **{k: "" if v is None else f"{v:.7g}" for k, v in values.items()}}
        if row.keys() <= set(self._columns.get(path, ())):
            with path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns[path], restval="").writerow(row)
        else:
            rows = read_csv(path) if path.exists() else []
            self._columns[path] = write_table(path, [*rows, row])
        for key, value in values.items():
            if value is not None:
                self._events.add_scalar(f"{table}/{key}", value, step)

    def progress(self, step: int, values: Mapping[str, float]) -> None:
        """Log `values` of training at `step`, and report them with the speed since the last."""
        last_step, last_time = self._mark
        self.skip(step)
        seconds = max(self._mark[1] - last_time, 1e-9) / max(step - last_step, 1)
        total, rate = self._run.total_steps, self._run.config.data.batch_size / seconds
        eta = datetime.timedelta(seconds=round(seconds * (total - step)))
        learning_rate = float(self._learning_rate(step - 1))  # of the update that ended in `step`
        row = {**values, "learning_rate": learning_rate, "images_per_second": rate}
        self.write("train", step, row)
        keys = _SHOWN if "caption_loss" in values else ("loss", *_SHOWN)
        shown = " | ".join(f"{key} {values[key]:.4g}" for key in keys if key in values)
        self._run.report(f"step {step}/{total} | {rate:.0f} images/s | ETA {eta} | {shown}")

    def close(self) -> None:
        """Flush and close the TensorBoard events."""
        self._events.close()

    def skip(self, step: int) -> None:
        """Leave the time since the last call out of the rate (validation, checkpoints)."""
        self._mark = (step, time.monotonic())
