"""The training loop: exact continuation, stops, faults, devices, steps per call."""

import gc
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from loop_files import last_variables, losses
from tiny_runs import STEPS, tiny_config

from sparsecap_jax.errors import CheckpointError, ConfigError, SparsecapError
from sparsecap_jax.files import system_fault
from sparsecap_jax.locks import locked
from sparsecap_jax.runs import loop
from sparsecap_jax.runs.finite import NonFiniteError
from sparsecap_jax.runs.loop import stack_batches, train
from sparsecap_jax.stopping import Stopped, on_signals
from sparsecap_jax.types import Batch, Regions

QUIET = []


def test_a_killed_run_continues_bit_for_bit(data, finished, tmp_path):
    script = pathlib.Path(__file__).parents[1] / "tiny_runs.py"
    command = [sys.executable, str(script), str(data), str(tmp_path / "killed")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        for line in process.stdout:  # step 4 is on disk by then, step 8 perhaps, step 12 not
            if line.startswith(f"step 10/{STEPS}"):
                process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    lines = []
    train(tiny_config(data), tmp_path / "killed", lines.append)
    assert lines[0].startswith(("continuing from step 4 ", "continuing from step 8 "))
    ours, theirs = last_variables(tmp_path / "killed"), last_variables(finished[0])
    for path, leaf in flatten_dict(theirs).items():
        np.testing.assert_array_equal(flatten_dict(ours)[path], leaf)
    assert losses(tmp_path / "killed") == losses(finished[0])
    for name in ("samples.jsonl", "summary.html"):
        assert (tmp_path / "killed" / name).read_bytes() == (finished[0] / name).read_bytes()


def assert_same_end(workdir, finished):
    """The run in `workdir` ended as `finished` did, bit for bit, and left nothing else behind."""
    ours, theirs = (flatten_dict(last_variables(folder)) for folder in (workdir, finished))
    for path, leaf in theirs.items():
        np.testing.assert_array_equal(ours[path], leaf)
    assert losses(workdir) == losses(finished)
    for name in ("validation.csv", "samples.jsonl", "summary.html", "summary.png"):
        assert (workdir / name).read_bytes() == (finished / name).read_bytes(), name
    names = [
        {str(path.relative_to(folder)) for path in folder.rglob("*") if path.parent.name != "d"}
        for folder in (workdir, finished)
    ]
    names = [{n for n in part if "tensorboard/" not in n and "ocdbt" not in n} for part in names]
    assert names[0] == names[1]


@pytest.mark.parametrize(
    ("number", "code", "line", "step"),
    [
        (signal.SIGTERM, 143, "step 6/", 7),  # between two validations; reported during step 7
        (signal.SIGINT, 130, f"step 4/{STEPS} | validation", 5),
    ],
)
def test_a_stopped_run_continues_bit_for_bit(data, finished, tmp_path, number, code, line, step):
    def report(text):
        if text.startswith(line):
            os.kill(os.getpid(), number)

    workdir, lines = tmp_path / "run", []
    with pytest.raises(Stopped) as stopped, on_signals():
        train(tiny_config(data), workdir, report)
    text = f"stopped at step {step} by {number.name}; run the same command to continue"
    assert (str(stopped.value), stopped.value.code) == (text, code)
    assert not (workdir / "model.scap").exists()
    train(tiny_config(data), workdir, lines.append)
    assert lines[0].startswith(f"continuing from step {step} of ")
    assert_same_end(workdir, finished[0])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_costs_no_earlier_checkpoint(data, finished, tmp_path):
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)

    def report(text):
        if text.startswith("step 6/"):  # the checkpoint of step 4 is written; that of 8 is not
            while not (workdir / "checkpoints/4").exists():
                time.sleep(0.01)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, usual[1]))

    def fault():  # its frames hold Orbax's failed writes, so they are left before the collection
        try:
            with pytest.raises((OSError, ValueError)) as raised:
                train(tiny_config(data), workdir, report)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, usual)
        return system_fault(raised.value)

    workdir, lines = tmp_path / "run", []
    assert fault() == f"{workdir}/checkpoints/8: File too large"
    gc.collect()
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["4"]
    train(tiny_config(data), workdir, lines.append)
    assert lines[0].startswith("continuing from step 4 of ")
    assert_same_end(workdir, finished[0])


def test_a_directory_that_another_process_trains_in_is_refused(data, finished):
    before = {path: path.stat().st_mtime_ns for path in finished[0].rglob("*") if path.is_file()}
    message = f"{finished[0]}: process {os.getpid()} on .* is writing to it"
    with locked(finished[0]), pytest.raises(SparsecapError, match=message):
        train(tiny_config(data), finished[0], QUIET.append)
    after = {path: path.stat().st_mtime_ns for path in finished[0].rglob("*") if path.is_file()}
    assert after == before


def test_processes_of_one_job_share_its_directory(data, tmp_path, monkeypatch):
    stray = tmp_path / ".weights.npz.abcd1234"
    stray.write_text("")  # which the first process may be writing
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(loop, "_train", lambda *_: {"step": 12})
    with locked(tmp_path):
        assert train(tiny_config(data), tmp_path) == {"step": 12}
    assert stray.exists()


def test_a_finished_run_is_left_as_it_is(data, finished):
    before = last_variables(finished[0])
    assert train(tiny_config(data), finished[0], QUIET.append) == finished[1]
    for path, leaf in flatten_dict(last_variables(finished[0])).items():
        np.testing.assert_array_equal(flatten_dict(before)[path], leaf)


def test_eight_devices_give_the_losses_of_one(data, finished, tmp_path):
    """They stop on the way, and continue with weights that are split over another mesh."""

    def report(text):
        if text.startswith("step 6/"):
            os.kill(os.getpid(), signal.SIGTERM)

    config, lines = tiny_config(data, devices=8), []
    with pytest.raises(Stopped), on_signals():
        train(config, tmp_path / "8", report)
    rules = ("lang_lstm/kernel_.*=data,model",)
    config.mesh.update(model=2, sharding="fsdp", rules=rules)
    train(config, tmp_path / "8", lines.append)
    assert "mesh.model was 1, is 2" in lines[1]
    np.testing.assert_allclose(losses(tmp_path / "8"), losses(finished[0]), rtol=2e-5)


def test_accumulated_batches_are_one_large_batch(data, tmp_path):
    """Adam's epsilon is large, so that gradients that are 0 but for rounding give no step."""
    for size, parts in ((8, 1), (2, 4)):
        config = tiny_config(data, accumulate=parts)
        config.model.dropout, config.data.batch_size = 0.0, size
        config.optimizer.epsilon = 1e-2
        train(config, tmp_path / str(parts), QUIET.append)
    ours, theirs = (flatten_dict(last_variables(tmp_path / name)) for name in ("4", "1"))
    for path, leaf in theirs.items():
        np.testing.assert_allclose(ours[path], leaf, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(losses(tmp_path / "4"), losses(tmp_path / "1"), rtol=2e-5)


@pytest.mark.usefixtures("default_emitters")
def test_several_steps_per_call_are_the_same_training(data, tmp_path):
    for steps in (1, 4):
        train(tiny_config(data, steps_per_call=steps), tmp_path / str(steps), QUIET.append)
    ours, theirs = (last_variables(tmp_path / name) for name in "41")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, theirs)


def test_another_config_in_the_same_directory_is_refused(data, finished):
    config = tiny_config(data)
    config.model.dropout = 0.2
    with pytest.raises(ConfigError, match=r"model\.dropout was 0\.1, is 0\.2.*new --workdir"):
        train(config, finished[0], QUIET.append)


def test_a_loss_that_is_not_finite_stops_the_run(data, tmp_path):
    config = tiny_config(data, "none")
    config.optimizer.update({"name": "sgd", "learning_rate": 1e30, "clip": "none"})
    with pytest.raises(NonFiniteError, match="the loss is"):
        train(config, tmp_path, QUIET.append)


# Orbax leaves coroutines behind when a read fails; they are collected here, not in a later test.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("item", ["params", "meta"])
def test_a_corrupt_checkpoint_is_one_clear_error(data, finished, tmp_path, item):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    last = workdir / "checkpoints" / str(STEPS) / item
    files = [path for path in last.rglob("*") if path.is_file() and path.stat().st_size > 200]
    for path in files or [last / "metadata"]:
        content = bytearray(path.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 40] = b"\x00" * len(content[middle : middle + 40])
        path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=f"checkpoints/{STEPS}/{item}: corrupt"):
        train(tiny_config(data), workdir, QUIET.append)
    gc.collect()


def test_stacked_batches_are_padded_to_the_largest():
    def batch(regions, length):
        return Batch(
            Regions(
                np.ones((2, regions, 3), np.float32),
                np.ones((2, regions), bool),
                np.ones((2, regions, 4), np.float32),
                np.ones((2, 3), np.float32),
            ),
            np.ones((2, 1, length), np.int32),
            np.ones((2, 1, length), bool),
            np.arange(2, dtype=np.int32),
        )

    stacked = stack_batches([batch(4, 5), batch(6, 3)])
    assert stacked.regions.features.shape == (2, 2, 6, 3)
    assert stacked.regions.mask.sum(-1).tolist() == [[4, 4], [6, 6]]
    assert stacked.tokens.sum(-1).ravel().tolist() == [5, 5, 3, 3]


@pytest.mark.parametrize(("section", "field"), [("data", "dir"), ("train", "init_from")])
def test_a_wrong_path_leaves_no_run_directory(data, tmp_path, section, field):
    config = tiny_config(data)
    config[section][field] = str(tmp_path / "none")
    with pytest.raises(SparsecapError, match="none"):
        train(config, tmp_path / "run", QUIET.append)
    assert not (tmp_path / "run").exists()
