"""Several real processes that train as one: the numbers of one process, stops, deaths, restarts."""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from loop_files import last_variables
from tiny_runs import tiny_config

from sparsecap_jax.commands.evaluate import evaluate_run
from sparsecap_jax.files import read_csv, read_json
from sparsecap_jax.runs.loop import train

REPO = pathlib.Path(__file__).parents[2]
TIMEOUT = 4
# Rewards from the third epoch on: steps 9 to 12.
SCST = {"start_epoch": 2, "num_samples": 2, "length_buckets": 1}


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


class Processes:
    """The processes of one job, each with some fake devices."""

    def __init__(self, data, workdir, count, *more, devices=1):
        port = free_port()
        flags = [f"--config.scst.{name}={value}" for name, value in SCST.items()]
        flags += [f"--config={REPO / 'tests/tiny_runs.py'}:{data}", f"--workdir={workdir}"]
        flags += [f"--coordinator=localhost:{port}", f"--num_processes={count}", *more]
        xla = f"--xla_force_host_platform_device_count={devices}"
        command = [sys.executable, str(REPO / "launch/train.py"), f"--process_timeout={TIMEOUT}"]
        self.processes = [
            subprocess.Popen(
                [*command, *flags, f"--process_id={number}"],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "XLA_FLAGS": xla},
            )
            for number in range(count)
        ]

    def wait_for(self, start):
        """Read the lines of the first process up to one that begins with `start`."""
        for line in self.processes[0].stdout:
            if line.startswith(start):
                return
        raise AssertionError(f"no line {start!r}: {self.end()}")

    def end(self):
        """Return status, output and errors of each process, once all have ended.

        Gloo prints who is connected; these lines are left out.
        """
        try:
            texts = [process.communicate(timeout=120) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
                process.communicate()
        return [
            (process.returncode, re.sub(r"\[Gloo\].*\n", "", output), errors)
            for process, (output, errors) in zip(self.processes, texts, strict=True)
        ]


LOST = """
import sys, time
from sparsecap_jax.runs.connection import Job, join_job
with join_job(Job("localhost:" + sys.argv[1], 2, int(sys.argv[2]), 4)):
    print("connected", flush=True)
    time.sleep(60)
"""


def test_the_death_of_the_first_process_is_one_line_too():
    """XLA ends processes that lose its service by itself, with a page of text."""
    port = str(free_port())
    both = [
        subprocess.Popen(
            [sys.executable, "-c", LOST, port, number],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in "01"
    ]
    try:
        for process in both:
            assert process.stdout.readline() == "connected\n"
        both[0].kill()
        _, errors = both[1].communicate(timeout=30)
    finally:
        for process in both:
            process.kill()
            process.communicate()
    assert re.fullmatch("error: process 0 of 2 has ended; what is saved .*\n", errors)
    assert both[1].returncode == 1


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The run of one process with one device, and the captions of its test split."""
    workdir, config = tmp_path_factory.mktemp("one") / "run", tiny_config(data)
    config.scst.update(SCST)
    train(config, workdir, lambda line: None)
    evaluate_run(workdir, report=lambda line: None, metrics=("CIDEr",))
    return workdir


@pytest.fixture(scope="module")
def killed(data, tmp_path_factory):
    """A run of two processes, of which the second was killed after step 6."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    job = Processes(data, workdir, 2)
    job.wait_for("step 6/12")
    job.processes[1].kill()
    start = time.monotonic()
    ended = job.end()
    return workdir, ended, time.monotonic() - start


def test_a_process_that_dies_ends_the_others_in_one_line(killed):
    (status, _, errors), (killed_status, _, _) = killed[1]
    assert killed_status == -signal.SIGKILL
    assert status == 1
    assert re.fullmatch(rf"error: process 1 of 2 gave no sign for {TIMEOUT} s; .*\n", errors)
    assert killed[2] < 4 * TIMEOUT
    assert [path.name for path in (killed[0] / "checkpoints").iterdir()] == ["4"]


def test_two_processes_continue_and_end_as_one_would(data, whole, killed, tmp_path):
    workdir = shutil.copytree(killed[0], tmp_path / "run")
    (status, output, errors), others = Processes(data, workdir, 2, "--score_test", devices=2).end()
    assert (status, errors) == (0, "")
    assert others == (0, "", "")
    assert output.startswith(f"continuing from step 4 of {workdir}")
    assert_same_tables(workdir, whole)
    ours, theirs = (flatten_dict(last_variables(path)["masks"]) for path in (workdir, whole))
    for path, logits in theirs.items():
        np.testing.assert_array_equal(ours[path] > 0, logits > 0, err_msg=str(path))
    assert (workdir / "samples.jsonl").read_text() == (whole / "samples.jsonl").read_text()
    captions = [read_json(path / "test_beam_2/captions.json") for path in (workdir, whole)]
    ours, theirs = ([(one["image_id"], one["caption"]) for one in part] for part in captions)
    assert ours == theirs
    assert {path.name for path in workdir.iterdir()} == {path.name for path in whole.iterdir()}


def test_four_processes_continue_and_stop_together(data, whole, killed, tmp_path):
    workdir = shutil.copytree(killed[0], tmp_path / "run")
    job = Processes(data, workdir, 4)
    job.wait_for("step 6/12")
    job.processes[2].send_signal(signal.SIGTERM)
    ended = job.end()
    stopped = {re.fullmatch(r"stopped at step (\d+) by SIGTERM; .*\n", e[2])[1] for e in ended}
    assert [status for status, *_ in ended] == [128 + signal.SIGTERM] * 4
    (step,) = stopped
    assert step in os.listdir(workdir / "checkpoints")
    assert_same_tables(workdir, whole)


def assert_same_tables(workdir, whole):
    for table in ("train", "validation"):
        rows = read_csv(whole / f"{table}.csv")
        for ours, theirs in zip(read_csv(workdir / f"{table}.csv"), rows, strict=False):
            for name in theirs.keys() - {"images_per_second"}:
                assert bool(ours[name]) == bool(theirs[name])
                if theirs[name]:
                    pair = float(ours[name]), float(theirs[name])
                    np.testing.assert_allclose(*pair, rtol=1e-5, atol=1e-5, err_msg=name)
    samples = [
        [json.loads(line) for line in (path / "samples.jsonl").read_text().splitlines()]
        for path in (workdir, whole)
    ]
    assert samples[0] == samples[1][: len(samples[0])]
