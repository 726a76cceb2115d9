"""Processes of the benchmarks: what they print, and that none outlives its caller."""

import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import processes  # noqa: E402

CHILD = "import os, processes, sys, time; processes.end_with_caller(); print(os.getpid(), "
CHILD += "file=sys.stderr, flush=True); time.sleep(60)"


def test_the_last_line_is_what_a_command_found():
    words = [sys.executable, "-c", "print('warming up'); print('{\"seconds\": 2}')"]
    assert processes.run_json(words) == {"seconds": 2}
    with pytest.raises(subprocess.CalledProcessError, match="exit status 3"):
        processes.run_json([sys.executable, "-c", "raise SystemExit(3)"])
    # A child that watches its caller ends by itself as well.
    watches = "import processes; processes.end_with_caller(); print(1)"
    env = {**os.environ, "PYTHONPATH": str(BENCHMARKS)}
    assert processes.run_json([sys.executable, "-c", watches], env) == 1


def test_a_child_ends_with_a_caller_that_is_killed():
    command = json.dumps([sys.executable, "-c", CHILD])
    caller = f"import processes; processes.run_json({command})"
    env = {**os.environ, "PYTHONPATH": str(BENCHMARKS)}
    process = subprocess.Popen(
        [sys.executable, "-c", caller], env=env, stderr=subprocess.PIPE, text=True
    )
    with process:
        child = int(process.stderr.readline())
        process.kill()
    for _ in range(100):
        if not pathlib.Path(f"/proc/{child}/stat").exists():
            return
        if pathlib.Path(f"/proc/{child}/stat").read_text().split()[2] == "Z":
            return  # nobody waited for it
        time.sleep(0.1)
    os.kill(child, 9)
    pytest.fail("the child is still there 10 s later")
