"""Measurements in processes of their own, so that each has its own peak memory and threads."""

import json
import os
import pathlib
import subprocess
import sys
import threading

_PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}


def run_json(command, env=None):
    """Run a command that prints JSON in its last line, and return that.

    Its stdin stays open as long as this process lives, see `end_with_caller`.
    """
    with subprocess.Popen(command, env=env, **_PIPES) as process:
        output = process.stdout.read()
        if process.wait():
            raise subprocess.CalledProcessError(process.returncode, command)
    return json.loads(output.splitlines()[-1])


def end_with_caller():
    """End this process once the one that runs it by `run_json` is gone, however that ended."""

    def watch():
        os.read(sys.stdin.fileno(), 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_reference(script, python, checkout, job, threads):
    """Run a script of this folder beside the reference with each number of threads.

    Args:
        script: its name; it takes the checkout, the job as JSON and a number of threads.
        python: an interpreter with PyTorch.
        checkout: the reference's folder.
        job: what to measure, JSON-able.
        threads: numbers of threads, as strings.

    Returns:
        What the fastest run printed.
    """
    path = str(pathlib.Path(__file__).with_name(script))
    found = []
    for count in threads:
        env = os.environ | {"OMP_NUM_THREADS": count}
        found.append(run_json([python, path, checkout, json.dumps(job), count], env))
    return min(found, key=lambda one: one["seconds"])
