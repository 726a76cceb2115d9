"""Runs of damaged files through every reader, in worker processes of limited time and memory.

python tests/fuzz/fuzz_runs.py --count=20000 --state=fuzz.json --output=docs/results/fuzz.md
python tests/fuzz/fuzz_runs.py --reader=weights:plain --trace=812

A failure is an exception that is none of the reader's, a message of several lines or without the
name of a file, a crash of the process, more than `SECONDS` of computing, or memory beyond the
limit. Its files are kept below `--failures`, in a folder READER-NUMBER.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import fuzz_worker
import psutil
from fuzz_mutations import GIB, mutated, rng_of
from fuzz_worker import MEMORY, contents, made, write

SECONDS = 5.0
CHUNK = 2000  # mutations after which the state is written
_START_SECONDS = 300.0


@dataclasses.dataclass
class Result:
    """What became of the mutations of one reader; `failures` by kind: number and first one."""

    runs: int = 0
    accepted: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    failures: dict = dataclasses.field(default_factory=dict)

    def fail(self, kind, number):
        count, first = self.failures.get(kind, (0, number))
        self.failures[kind] = (count + 1, first)

    @property
    def failed(self):
        return sum(count for count, _ in self.failures.values())


def share_of(reader, count):
    """Return the number of mutations of a reader: fewer where each takes long."""
    return max(min(count, 5), count // reader.slower)


class Runs:
    """Mutations of readers, which worker processes make; `state` is a file that they continue from.

    Readers that failed before, and all of another seed, begin anew.
    """

    def __init__(
        self,
        names,
        count,
        seed=0,
        failures=None,
        state=None,
        chunk=CHUNK,
        progress=lambda line: None,
    ):
        from fuzz_readers import READERS

        self.shares = {name: share_of(READERS[name], count) for name in names}
        self.results = {name: Result() for name in names}
        self.seed, self.failures, self.chunk, self.progress = seed, failures, chunk, progress
        self._state = pathlib.Path(state) if state else None
        self._saved = {"seed": seed, "readers": {}}
        if self._state and self._state.exists():
            saved = json.loads(self._state.read_text())
            self._saved = saved if saved["seed"] == seed else self._saved
        for name, fields in self._saved["readers"].items():
            if name in self.results and not fields["failures"]:
                self.results[name] = Result(**fields)
        self._pending = [name for name in reversed(names) if self._left(name) > 0]
        self._lock, self._processes, self._stopped = threading.Lock(), set(), False

    def run(self, jobs=1):
        """Run what is left; no process outlives it."""
        with (
            tempfile.TemporaryDirectory(prefix="fuzz") as folder,
            concurrent.futures.ThreadPoolExecutor(jobs) as pool,
        ):
            futures = [pool.submit(self._watch, folder) for _ in range(jobs)]
            try:
                for future in concurrent.futures.as_completed(futures):
                    future.result()
            finally:
                with self._lock:
                    self._stopped = True
                    for process in self._processes:
                        process.kill()
        return self.results

    def _left(self, name):
        return self.shares[name] - self.results[name].runs

    def _watch(self, folder):
        """Drive one worker after another, a new one after each crash, until no reader is left."""
        while self._pending and not self._stopped:
            with tempfile.TemporaryFile() as errors, self._worker(folder, errors) as process:
                while name := self._next():
                    crash = self._one_reader(process, name, errors)
                    self._save(name)
                    if crash:
                        if self._left(name) > 0:
                            self._pending.append(name)
                        break

    def _next(self):
        with self._lock:
            return self._pending.pop() if self._pending and not self._stopped else None

    @contextlib.contextmanager
    def _worker(self, folder, errors):
        command = [sys.executable, fuzz_worker.__file__]
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        options |= {"env": {**os.environ, "TMPDIR": folder}}
        # A session of its own keeps Ctrl-C from it, which would look like a crash.
        with subprocess.Popen(command, **options, start_new_session=True) as process:
            with self._lock:
                self._processes.add(process)
                if self._stopped:
                    process.kill()
            try:
                yield process
            finally:
                with self._lock:
                    self._processes.discard(process)
                process.kill()

    def _one_reader(self, process, name, errors):
        """Return whether the process ended before the reader was through."""
        result = self.results[name]
        task = json.dumps([name, self.seed, result.runs, self.shares[name]])
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(task.encode() + b"\n")
            process.stdin.flush()
        trying, buffer = None, b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while True:
                used, patience = _cpu(process), time.monotonic()
                while not selector.select(0.5):
                    spent, waited = _cpu(process) - used, time.monotonic() - patience
                    limit = SECONDS if trying is not None else _START_SECONDS
                    if spent > limit or waited > 12 * limit:
                        if trying is None:
                            raise RuntimeError(f"fuzz worker of {name} does not start")
                        return self._crash(name, trying, f"takes more than {SECONDS:g} s")
                chunk = os.read(process.stdout.fileno(), 65536)
                *lines, buffer = (buffer + chunk).split(b"\n")
                for what, *values in map(json.loads, lines):
                    if what == "end":
                        return False
                    trying = values[1] if what == "try" else None
                    if what == "done":
                        self._add(name, *values[1:])
                if not chunk:
                    code = process.wait()
                    if self._stopped:
                        return True
                    if trying is None:
                        errors.seek(0)
                        raise RuntimeError(f"fuzz worker: {errors.read().decode()[-3000:]}")
                    why = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                    return self._crash(name, trying, f"the process ends with {why}")

    def _add(self, name, number, seconds, slowest, fault):
        result = self.results[name]
        result.runs += 1
        result.accepted += fault is None
        result.seconds += seconds
        result.slowest = max(result.slowest, slowest)
        if fault:
            _fail(result, name, number, self.seed, fault, self.failures)
        if result.runs % self.chunk == 0:
            self._save(name)

    def _crash(self, name, number, why):
        self.results[name].runs += 1
        _fail(self.results[name], name, number, self.seed, why, self.failures)
        return True

    def _save(self, name):
        with self._lock:
            if self._state:
                self._saved["readers"][name] = dataclasses.asdict(self.results[name])
                partial = self._state.with_name(self._state.name + ".partial")
                partial.write_text(json.dumps(self._saved))
                partial.replace(self._state)
            whole = sum(self._left(other) <= 0 for other in self.results)
            runs, share = self.results[name].runs, self.shares[name]
            self.progress(
                f"{name}: {runs:,} of {share:,}; {whole} of {len(self.results)} readers done"
            )


def _cpu(process):
    try:
        return sum(psutil.Process(process.pid).cpu_times()[:2])
    except psutil.Error:
        return 0.0


def _fail(result, name, number, seed, kind, failures):
    result.fail(kind, number)
    if failures and result.failures[kind][0] == 1:
        from fuzz_readers import READERS

        folder = pathlib.Path(failures, f"{name.replace(':', '-')}-{number}")
        shutil.rmtree(folder, ignore_errors=True)
        with tempfile.TemporaryDirectory() as whole:
            READERS[name].make(pathlib.Path(whole))
            files = contents(pathlib.Path(whole))
        write(mutated(files, rng_of(name, seed, number)), folder)


def table(results):
    """Return a Markdown table of results."""
    titles = ("reader", "mutations", "read", "refused", "failed", "seconds", "slowest")
    lines = [f"| {' | '.join(titles)} |", "|---|" + "---|" * 6]
    for name, r in results.items():
        counts = r.runs, r.accepted, r.runs - r.accepted - r.failed, r.failed
        cells = [name, *map(str, counts), f"{r.seconds:.0f}", f"{r.slowest:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def faults(results):
    """Return one line for each kind of failure."""
    return [
        f"{name}: {count} times, first {first}: {kind}"
        for name, result in results.items()
        for kind, (count, first) in result.failures.items()
    ]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--reader", action="append", help="by default all")
    parser.add_argument("--count", type=int, default=20_000, help="mutations of each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--failures", default="fuzz_failures", help="folder of what failed")
    parser.add_argument("--state", help="JSON file of what is done; a repeat continues from it")
    parser.add_argument("--chunk", type=int, default=CHUNK, help="mutations between writing it")
    parser.add_argument("--output", help="Markdown file of the table")
    parser.add_argument("--trace", type=int, help="number of one to read here, with its errors")
    args = parser.parse_args()
    from fuzz_readers import READERS

    names = args.reader or list(READERS)
    if args.trace is not None:
        return trace(READERS[names[0]], names[0], args.seed, args.trace)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))

    def progress(line):
        print(line, flush=True)

    options = args.failures, args.state, args.chunk, progress
    runs = Runs(names, args.count, args.seed, *options)
    try:
        results = runs.run(args.jobs)
    except KeyboardInterrupt:
        return "interrupted"
    text = table(results)
    print(text, *faults(results), sep="\n")
    if args.output:
        number = sum(result.runs for result in results.values())
        failed = sum(result.failed for result in results.values())
        minutes = sum(result.seconds for result in results.values()) / 60
        head = f"{number:,} damaged inputs, {failed} failures, {minutes:.0f} minutes of one core;"
        slow = [f"`{name}` {share:,}" for name, share in runs.shares.items() if share < args.count]
        fewer = f"\n\nOf slow readers fewer: {', '.join(slow)}." if slow else ""
        page = _PAGE.format(head=f"{head} seed {args.seed}.{fewer}", table=text)
        pathlib.Path(args.output).write_text(page)
    return bool(faults(results))


_PAGE = """# Damaged files through every reader

`make fuzz` damages whole files of every format (bits, cuts, splices, huge numbers, JSON nodes,
array headers, members of archives, bombs) and reads them in a process with {seconds} s of time and
{memory} GiB of memory beyond what it starts with. Every damaged input must be read, or refused with
one line that names the file. What is no reading (tracing models, drawing) is done once, or not.

{{head}}

{{table}}""".format(seconds=f"{SECONDS:g}", memory=MEMORY // GIB)


def trace(reader, name, seed, number):
    """Read one mutation in this process."""
    with tempfile.TemporaryDirectory() as folder:
        top = pathlib.Path(folder)
        files = made(reader, top / "whole")
        damaged = mutated(files, rng_of(name, seed, number))
        changed = [key for key in {*files, *damaged} if files.get(key) != damaged.get(key, 0)]
        print("changed:", *sorted(changed))
        write(damaged, top / "damaged")
        print("read:", repr(reader.read(top / "damaged"))[:500])


if __name__ == "__main__":
    sys.exit(main())
