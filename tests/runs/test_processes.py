"""Several real processes that train as one: the numbers of one process, stops, deaths, restarts."""

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
from tiny_runs import tiny_config, xla_flags

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


def without_gloo(output):
    """Leave out what Gloo prints of who is connected.

    One thread for each device prints it, piece by piece, so that two of its lines can be mixed.
    """
    pieces = (r"\[Gloo\] Rank ", " is connected to ", r" peer ranks\. ")
    pieces += ("Expected number of connected peer ranks is : ", r"\d+")
    return re.sub(rf"(?m)^(?:{'|'.join(pieces)})*\n", "", output)


class Processes:
    """The processes of one job, each with some fake devices."""

    def __init__(self, data, workdir, count, *changes, devices=1):
        port = free_port()
        flags = [f"--config.scst.{name}={value}" for name, value in SCST.items()]
        flags += [f"--config={REPO / 'tests/tiny_runs.py'}:{data}", f"--workdir={workdir}"]
        flags += [f"--coordinator=localhost:{port}", f"--num_processes={count}", *changes]
        command = [sys.executable, str(REPO / "launch/train.py"), f"--process_timeout={TIMEOUT}"]
        self.processes = [
            subprocess.Popen(
                [*command, *flags, f"--process_id={number}"],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "XLA_FLAGS": xla_flags(devices)},
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
        """Return status, output and errors of each process, once all have ended."""
        try:
            texts = [process.communicate(timeout=300) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
                process.communicate()
        return [
            (process.returncode, without_gloo(output), errors)
            for process, (output, errors) in zip(self.processes, texts, strict=True)
        ]


@pytest.mark.parametrize(
    ("output", "ours"),
    [
        ("", ""),
        ("one\ntwo\n", "one\ntwo\n"),
        (
            "[Gloo] Rank 0 is connected to 3 peer ranks. "
            "Expected number of connected peer ranks is : 3\nstep 2/12\n",
            "step 2/12\n",
        ),
        (
            "[Gloo] Rank [Gloo] Rank 10 is connected to  is connected to 3 peer ranks. "
            "Expected number of connected peer ranks is : 3\n"
            "3 peer ranks. Expected number of connected peer ranks is : 3\n\n",
            "",
        ),
        ("[Gloo] Rank 0 failed\n", "[Gloo] Rank 0 failed\n"),
    ],
)
def test_only_what_gloo_says_of_connections_is_left_out(output, ours):
    assert without_gloo(output) == ours


WAITING = """
import sys
from sparsecap_jax.runs.connection import Job, join_job
with join_job(Job("localhost:" + sys.argv[1], 2, int(sys.argv[2]), int(sys.argv[3]))):
    import numpy as np
    from jax.experimental import multihost_utils
    while True:
        multihost_utils.process_allgather(np.ones(3))
        print("together", flush=True)
"""


@pytest.mark.parametrize(
    ("dies", "line"),
    [
        (0, "error: process 0 of 2 has ended; what is saved .*\n"),  # XLA would print a page
        (1, f"error: process 1 of 2 gave no sign for {TIMEOUT} s; what is saved .*\n"),
    ],
)
def test_a_process_that_dies_ends_the_other_in_one_line(dies, line):
    port = str(free_port())
    both = [
        subprocess.Popen(
            [sys.executable, "-c", WAITING, port, number, str(TIMEOUT)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in "01"
    ]
    try:
        for process in both:
            while process.stdout.readline() != "together\n":
                assert process.poll() is None, process.communicate()
        both[dies].kill()
        start = time.monotonic()
        _, errors = both[1 - dies].communicate(timeout=30)
    finally:
        for process in both:
            process.kill()
            process.communicate()
    assert re.fullmatch(line, errors)
    assert both[1 - dies].returncode == 1
    assert time.monotonic() - start < 3 * TIMEOUT


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The run of one process with one device, and the captions of its test split."""
    workdir, config = tmp_path_factory.mktemp("one") / "run", tiny_config(data)
    config.scst.update(SCST)
    train(config, workdir, lambda line: None)
    evaluate_run(workdir, report=lambda line: None, metrics=("CIDEr",))
    return workdir


@pytest.fixture(scope="module")
def stopped(data, tmp_path_factory):
    """A run of four processes, of which one was asked to stop after step 2."""
    workdir = tmp_path_factory.mktemp("four") / "run"
    job = Processes(data, workdir, 4)
    job.wait_for("step 2/12")
    job.processes[2].send_signal(signal.SIGTERM)
    return workdir, job.end()


def test_four_processes_train_and_stop_together(stopped, whole):
    workdir, ended = stopped
    steps = {re.fullmatch(r"stopped at step (\d+) by SIGTERM; .*\n", e[2])[1] for e in ended}
    assert [status for status, *_ in ended] == [128 + signal.SIGTERM] * 4
    assert [output for _, output, _ in ended][1:] == [""] * 3
    (step,) = steps
    assert step in os.listdir(workdir / "checkpoints")
    assert_same_tables(workdir, whole, "train", until=int(step))


def test_two_processes_continue_and_end_as_one_would(data, whole, stopped, tmp_path):
    workdir = shutil.copytree(stopped[0], tmp_path / "run")
    (status, output, errors), others = Processes(data, workdir, 2, "--score_test", devices=2).end()
    assert (status, errors) == (0, "")
    assert others == (0, "", "")
    step = max(map(int, os.listdir(stopped[0] / "checkpoints")))
    assert output.startswith(f"continuing from step {step} of {workdir}")
    assert_same_tables(workdir, whole, "train", "validation")
    ours, theirs = (flatten_dict(last_variables(path)["masks"]) for path in (workdir, whole))
    for path, logits in theirs.items():
        np.testing.assert_array_equal(ours[path] > 0, logits > 0, err_msg=str(path))
    assert (workdir / "samples.jsonl").read_text() == (whole / "samples.jsonl").read_text()
    captions = [read_json(path / "test_beam_2/captions.json") for path in (workdir, whole)]
    ours, theirs = ([(one["image_id"], one["caption"]) for one in part] for part in captions)
    assert ours == theirs
    assert {path.name for path in workdir.iterdir()} == {path.name for path in whole.iterdir()}


def assert_same_tables(workdir, whole, *tables, until=12):
    for table in tables:
        rows = [row for row in read_csv(whole / f"{table}.csv") if int(row["step"]) <= until]
        assert rows
        for ours, theirs in zip(read_csv(workdir / f"{table}.csv"), rows, strict=True):
            for name in theirs.keys() - {"images_per_second"}:
                assert bool(ours.get(name)) == bool(theirs[name])  # columns come with rewards
                if theirs[name]:
                    pair = float(ours[name]), float(theirs[name])
                    np.testing.assert_allclose(*pair, rtol=1e-5, atol=1e-5, err_msg=name)
