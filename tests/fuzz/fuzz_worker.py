"""Worker process of the fuzz runs: damages the files of a reader and reads them, one at a time.

It takes a task a line, `[reader, seed, first number, end]`, and prints what becomes of each
mutation.
"""

import json
import os
import pathlib
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback

from fuzz_mutations import FOLDER, GIB, Sparse, mutated, rng_of

MEMORY = GIB  # beyond what a worker has before
_KILL_SECONDS = 120
_TESTS = pathlib.Path(__file__).resolve().parents[1]

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path[:0] = [str(_TESTS), str(_TESTS / "data")]


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


def work():
    """Run the mutations that lines of the input ask for, and print what becomes of each."""
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # libraries print to it
    import fuzz_readers

    def say(*values):
        print(json.dumps(values), file=lines, flush=True)

    parent = os.getppid()
    fuzz_readers.read_only()
    for task in map(json.loads, sys.stdin):
        name, seed, first, end = task
        reader = fuzz_readers.READERS[name]
        with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
            top = pathlib.Path(folder)
            _limit_memory(resource.RLIM_INFINITY)
            files = made(reader, top / "whole")
            for number in range(first, end):
                _limit_memory(MEMORY)
                signal.alarm(_KILL_SECONDS)  # kills a reader that hangs when nobody watches it
                start = time.process_time()
                place = top / f"m{number}"
                write(mutated(files, rng_of(name, seed, number)), place)
                say("try", name, number)
                read = time.process_time()
                fault = fault_of(reader, place)
                now = time.process_time()
                say("done", name, number, now - start, now - read, fault)
                shutil.rmtree(place)
                if os.getppid() != parent:
                    return
            signal.alarm(0)
        say("end")


def _limit_memory(size):
    """Let the process take `size` bytes beyond what it has now."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if size != resource.RLIM_INFINITY:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
        size += pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size, hard))


if __name__ == "__main__":
    work()
