"""The lines that accelerator.py prints and writes, within a budget of time."""

import json
import os
import pathlib
import sys
import threading
import time
from typing import NamedTuple


class Task(NamedTuple):
    """One line of the table: `run()` returns its figures."""

    part: str
    name: str
    run: object


class Record:
    """Lines as they come: printed, and written to a file along with `about`.

    Args:
        path: the JSON file; lines of an earlier call for the same `about` are kept.
        about: device, versions and sizes.
        seconds: time for all of them.
        clock: seconds since any time.
    """

    def __init__(self, path, about, seconds, clock=time.monotonic):
        self.path, self.about, self.clock = pathlib.Path(path), about, clock
        self.deadline = clock() + seconds
        self.rows, self.lock, self.running = [], threading.Lock(), None
        self._longest = {}
        if self.path.exists():
            earlier = json.loads(self.path.read_text())
            if earlier.get("about") == about:
                self.rows = [row for row in earlier["rows"] if not unfinished(row)]

    def take(self, task):
        """Run a task if it fits, judged by the longest one of its part; write down the result."""
        key = {"part": task.part, "name": task.name}
        if any(key.items() <= row.items() for row in self.rows):
            return
        left, expected = self.deadline - self.clock(), self._longest.get(task.part, 0.0)
        if left <= expected:
            self.add(key | {"skipped": f"{max(left, 0):.0f} s left, takes about {expected:.0f} s"})
            return
        start, self.running = self.clock(), key
        try:
            row = key | task.run()
        except Exception as error:  # one shape that runs out of memory must not end the others
            row = key | {"failed": f"{type(error).__name__}: {str(error).splitlines()[0]:.120}"}
        self.running = None
        self._longest[task.part] = max(expected, self.clock() - start)
        self.add(row)

    def add(self, row):
        """Append a line, print it, write the file."""
        from sparsecap_jax.files import write_json

        with self.lock:
            self.rows.append(row)
            print(line(row, self.rates()), flush=True)
            write_json(self.path, {"about": self.about, "rows": self.rows}, indent=1)

    def rates(self):
        """The line of measured rates, or {}."""
        return next((row for row in self.rows if "copy" in row), {})

    def stop(self):
        """End the program in the middle of a task: time is over."""
        if self.running:
            self.add(self.running | {"skipped": "time was over before it ended"})
        self.finish()
        os._exit(self.status())

    def finish(self):
        """Say what is missing or wrong."""
        wrong = [row for row in self.rows if bad(row)]
        skipped = sum("skipped" in row for row in self.rows)
        print(f"\n{len(self.rows)} lines, {skipped} skipped, {len(wrong)} wrong; see {self.path}")
        if skipped:
            print("run the same command again to measure what was skipped")
        sys.stdout.flush()

    def status(self):
        """Exit status: 1 where a check failed."""
        return int(any(bad(row) for row in self.rows))


def unfinished(row):
    """Whether a line has no figures."""
    return "skipped" in row or "failed" in row


def bad(row):
    """Whether a line is an error, or a check that found a difference."""
    return "failed" in row or row.get("ok") is False


TITLES = ("part", "what", "ms", "images/s", "GB", "compile s", "MFU", "floor", "remarks")
_SHOWN = ("part", "name", "seconds", "per_second", "unit", "GB", "compile", "flops", "bytes")


def line(row, rates):
    """One line of the table."""
    cells = [row["part"], row["name"]]
    if "seconds" in row:
        cells += [f"{1000 * row['seconds']:.3g}", f"{row.get('per_second', 0):.4g}"]
        cells += [f"{row['GB']:.2f}" if "GB" in row else "", f"{row['compile']:.1f}"]
        mfu, floor = shares(row, rates)
        cells += [f"{mfu:.1%}" if mfu else "", f"{floor:.1%}" if floor else ""]
    else:
        cells += [""] * 6
    rest = {key: value for key, value in row.items() if key not in _SHOWN}
    shown = (f"{value:.3g}" if isinstance(value, float) else str(value) for value in rest.values())
    cells.append(", ".join(f"{key} {value}" for key, value in zip(rest, shown, strict=True)))
    return "| " + " | ".join(cells) + " |"


def shares(row, rates):
    """Model FLOP utilisation, and the floor as a share of the time; None without rates."""
    if "flops" not in row or not rates:
        return None, None
    least = row["flops"] / rates["bfloat16" if "bfloat16" in row["name"] else "float32"]
    floor = max(least, row["bytes"] / rates["copy"])
    return least / row["seconds"], floor / row["seconds"]
