"""Runs of damaged files through every reader, in worker processes of limited time and memory.

python tests/fuzz/fuzz_runs.py --count=20000 --output=docs/results/fuzz.md
python tests/fuzz/fuzz_runs.py --reader=weights --first=812 --count=1 --trace

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
import resource
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback

import psutil
from fuzz_mutations import FOLDER, GIB, Sparse, mutated, rng_of

SECONDS = 5.0
MEMORY = GIB  # beyond what a worker has once it has read whole files
_START_SECONDS = 300.0
_HERE = pathlib.Path(__file__).resolve()
_TESTS = _HERE.parents[1]

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path[:0] = [str(_TESTS), str(_TESTS / "data")]


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


def contents(folder):
    """Return the files below a folder by relative path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def write(files, folder):
    """Write files below a new folder."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is FOLDER:
            path.mkdir()
        elif isinstance(content, Sparse):
            path.write_bytes(content.content)
            os.truncate(path, content.size)
        else:
            path.write_bytes(content)


def made(reader, folder):
    """Write a reader's whole files into a new folder, read them, and return them."""
    folder.mkdir(parents=True)
    reader.make(folder)
    files = contents(folder)
    reader.read(folder)
    return files


def fault_of(reader, folder):
    """Read a folder; return None if it was accepted, "" if refused, else the kind of failure."""
    try:
        reader.read(folder)
    except reader.errors as error:
        text = str(error)
        names = [folder.name, *(path.name for path in folder.rglob("*"))]
        if "\n" in text:
            return f"a message of several lines {_place(error)}"
        if not any(name in text for name in names):
            return f"a message that names no file {_place(error)}"
        return ""
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        kind = f"{type(error).__module__}.{type(error).__name__}".removeprefix("builtins.")
        return f"{kind} {_place(error)}"
    return None


def _place(error):
    """Describe the innermost function of the package that an error went through."""
    frames = traceback.extract_tb(error.__traceback__)
    frame = ([f for f in frames if "sparsecap_jax" in f.filename] or frames)[-1]
    return f"at {pathlib.Path(frame.filename).name}:{frame.lineno} in {frame.name}"


def work(names, seed, first, count):
    """Run mutations of readers one after another, and print what becomes of each."""
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # libraries print to it
    from fuzz_readers import READERS

    def say(*values):
        print(json.dumps(values), file=lines, flush=True)

    for name in names:
        reader = READERS[name]
        say("start", name, first)
        with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
            top = pathlib.Path(folder)
            files = made(reader, top / "whole")
            pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + MEMORY
            _, hard = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
            for number in range(first, share_of(reader, count)):
                damaged = mutated(files, rng_of(name, seed, number))
                place = top / f"m{number}"
                write(damaged, place)
                say("try", name, number)
                start = time.perf_counter()
                fault = fault_of(reader, place)
                say("done", name, number, time.perf_counter() - start, fault)
                shutil.rmtree(place)
            resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        first = 0
    say("end")


def share_of(reader, count):
    """Return the number of mutations of a reader: fewer where each takes long."""
    return max(min(count, 5), count // reader.slower)


def fuzz(names, count, seed=0, failures=None, jobs=1, progress=lambda line: None):
    """Run `count` mutations through every reader; return results by name."""
    results = {name: Result() for name in names}
    groups = [names[start::jobs] for start in range(jobs)]
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        futures = [
            pool.submit(_watch, group, count, seed, failures, results, progress)
            for group in groups
            if group
        ]
        for future in futures:
            future.result()
    return results


def _watch(names, count, seed, failures, results, progress):
    """Drive one worker after another until all of `names` are through."""
    first = 0
    while names:
        name, number, why = _one_worker(names, count, seed, first, results, failures, progress)
        if name is None:
            return
        results[name].runs += 1
        _fail(results[name], name, number, seed, why, failures)
        names, first = names[names.index(name) :], number + 1


def _one_worker(names, count, seed, first, results, failures, progress):
    """Return None once all are through, else reader and number of a crash, and its kind."""
    command = [sys.executable, str(_HERE), "--worker", f"--seed={seed}", f"--count={count}"]
    command += [f"--first={first}", *(f"--reader={name}" for name in names)]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as process,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(process.kill)
        selector = stack.enter_context(selectors.DefaultSelector())
        selector.register(process.stdout, selectors.EVENT_READ)
        trying, buffer = None, b""
        while True:
            used, patience = _cpu(process), time.monotonic()
            while not selector.select(0.5):
                spent, waited = _cpu(process) - used, time.monotonic() - patience
                limit = SECONDS if trying else _START_SECONDS
                if spent > limit or waited > 12 * limit:
                    if trying:
                        return (*trying, f"takes more than {SECONDS:g} s")
                    raise RuntimeError(f"fuzz worker of {names} does not start")
            chunk = os.read(process.stdout.fileno(), 65536)
            *lines, buffer = (buffer + chunk).split(b"\n")
            for what, *values in map(json.loads, lines):
                if what == "end":
                    return None, None, None
                if what == "start":
                    progress(f"{values[0]} ...")
                trying = values if what == "try" else None
                if what == "done":
                    name, number, seconds, fault = values
                    result = results[name]
                    result.runs += 1
                    result.accepted += fault is None
                    result.seconds += seconds
                    result.slowest = max(result.slowest, seconds)
                    if fault:
                        _fail(result, name, number, seed, fault, failures)
            if not chunk:
                code = process.wait()
                if trying:
                    why = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                    return (*trying, f"the process ends with {why}")
                errors.seek(0)
                raise RuntimeError(f"fuzz worker: {errors.read().decode()[-3000:]}")


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
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--failures", default="fuzz_failures", help="folder of what failed")
    parser.add_argument("--output", help="Markdown file of the table")
    parser.add_argument("--trace", action="store_true", help="read here, and let errors through")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args.reader, args.seed, args.first, args.count)
    from fuzz_readers import READERS

    names = args.reader or list(READERS)
    if args.trace:
        return trace(READERS[names[0]], names[0], args.seed, args.first)
    start = time.monotonic()
    results = fuzz(names, args.count, args.seed, args.failures, args.jobs, print)
    text = table(results)
    print(text, *faults(results), sep="\n")
    if args.output:
        minutes = (time.monotonic() - start) / 60
        runs = sum(result.runs for result in results.values())
        failed = sum(result.failed for result in results.values())
        head = f"{runs:,} damaged inputs, {failed} failures, {minutes:.0f} minutes"
        head += f" on {args.jobs} cores; seed {args.seed}."
        pathlib.Path(args.output).write_text(_PAGE.format(head=head, table=text))
    return bool(faults(results))


_PAGE = """# Damaged files through every reader

`make fuzz` damages whole files of every format (bits, cuts, splices, huge numbers, JSON nodes,
array headers, members of archives, bombs) and reads them in a process with {seconds} s of time and
{memory} GiB of memory beyond what it starts with. Every damaged input must be read, or refused with
one line that names the file. Readers that take long get a share of the mutations.

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
