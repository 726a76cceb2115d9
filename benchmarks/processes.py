"""Measurements in processes of their own, so that each has its own peak memory and threads."""

import json
import os
import pathlib
import subprocess


def run_json(command, env=None):
    """Run a command that prints JSON in its last line, and return that."""
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


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
