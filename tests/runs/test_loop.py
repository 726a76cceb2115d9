"""The training loop: exact continuation, devices, steps per call, what a run leaves behind."""

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
from tiny_runs import SIZES, STEPS, make_data, tiny_config

from sparsecap_jax.commands.evaluate import evaluate_run
from sparsecap_jax.commands.report import report_run
from sparsecap_jax.errors import CheckpointError, ConfigError, SparsecapError
from sparsecap_jax.evaluation.metrics import score_captions
from sparsecap_jax.files import locked, read_csv, read_json, system_fault
from sparsecap_jax.runs import loop
from sparsecap_jax.runs.checkpoints import Checkpoints
from sparsecap_jax.runs.directory import load_run
from sparsecap_jax.runs.finite import NonFiniteError
from sparsecap_jax.runs.loop import stack_batches, train
from sparsecap_jax.runs.weights import load_weights
from sparsecap_jax.stopping import Stopped, on_signals
from sparsecap_jax.types import Batch, Regions

QUIET = []


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("scenes") / "toy")


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A supermask run from start to end in one process."""
    workdir = tmp_path_factory.mktemp("run") / "whole"
    summary = train(tiny_config(data), workdir, QUIET.append)
    return workdir, summary


def last_variables(workdir):
    checkpoints = Checkpoints(workdir, read_only=True)
    try:
        return checkpoints.restore_variables(checkpoints.last_step())
    finally:
        checkpoints.close()


def losses(workdir):
    return [float(row["loss"]) for row in read_csv(workdir / "train.csv")]


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
        (signal.SIGTERM, 143, "step 6/", 6),  # between two validations
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


def test_a_run_leaves_logs_weights_and_a_summary(finished):
    workdir, summary = finished
    initial = flatten_dict(load_weights(workdir / "initial_weights.npz")["params"])
    count = sum(leaf.size for leaf in initial.values())
    assert QUIET[0] == f"up_down: {count:,} parameters, 32 training images, {STEPS} steps"
    assert [int(row["step"]) for row in read_csv(workdir / "train.csv")] == [2, 4, 6, 8, 10, 12]
    validation = read_csv(workdir / "validation.csv")
    assert [int(row["step"]) for row in validation] == [4, 8, 12]
    assert all(float(row["loss"]) > 0 and float(row["CIDEr"]) >= 0 for row in validation)
    assert list((workdir / "tensorboard").glob("events.out.tfevents.*"))
    assert read_json(workdir / "summary.json") == summary
    params = load_weights(workdir / "model.scap")["params"]
    weights = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 2]
    assert summary["nonzeros"] == sum(int((leaf != 0).sum()) for leaf in weights)
    assert summary["bytes"] == (workdir / "model.scap").stat().st_size
    assert load_run(workdir).model.rnn_size == 16


def test_a_run_logs_its_rate_its_masks_and_its_size_by_module(finished):
    """Figures of the schedule, the last checkpoint and the finished weights, computed here."""
    workdir = finished[0]
    config = load_run(workdir).config.optimizer
    low, high = config.learning_rate_min, config.learning_rate
    rows = read_csv(workdir / "train.csv")
    for row in rows:
        rate = low + (high - low) * (1 + np.cos(np.pi * int(row["step"]) / STEPS)) / 2
        assert float(row["learning_rate"]) == pytest.approx(rate, rel=1e-5)
        penalty = float(row["loss"]) - float(row["caption_loss"])
        assert penalty == pytest.approx(float(row["sparsity_loss"]), abs=1e-5)
    shown = next(line for line in QUIET if line.startswith("step 2/"))
    assert f"| caption_loss {float(rows[0]['caption_loss']):.4g} | sparsity" in shown
    logits = flatten_dict(last_variables(workdir)["masks"], sep="/")
    flat = np.concatenate([leaf.ravel() for leaf in logits.values()]).astype(np.float64)
    probability = float(rows[-1]["mask_probability"])
    assert probability == pytest.approx(np.mean(1 / (1 + np.exp(-flat))), rel=1e-5)
    tensors = read_csv(workdir / "sparsity.csv")
    assert [int(row["step"]) for row in tensors] == [4, 8, 12]
    for name, leaf in logits.items():
        assert float(tensors[-1][name]) == pytest.approx(np.mean(leaf <= 0), abs=1e-6)
    assert finished[1]["best_step"] is None  # so that the finished weights are the last ones
    sizes = read_json(workdir / "params.json")
    params = flatten_dict(load_weights(workdir / "model.scap")["params"], sep="/")
    assert {"(all)", "attention", "attention/alpha"} < sizes.keys()
    for name, found in sizes.items():
        counts = {"parameters": 0, "nonzeros": 0}
        for path, leaf in params.items():
            if name == "(all)" or path.startswith(f"{name}/"):
                counts["parameters"] += leaf.size
                counts["nonzeros"] += int(np.sum(logits.get(path, np.ones(leaf.shape)) > 0))
        assert found.items() >= counts.items()


def test_eight_devices_give_the_losses_of_one(data, tmp_path):
    for devices in (1, 8):
        config = tiny_config(data, devices=devices)
        config.model.dropout = 0.0  # each device packs its own words, and drops what it has
        train(config, tmp_path / str(devices), QUIET.append)
    np.testing.assert_allclose(losses(tmp_path / "8"), losses(tmp_path / "1"), rtol=2e-5)


def test_several_steps_per_call_give_the_same_losses(data, finished, tmp_path):
    train(tiny_config(data, steps_per_call=4), tmp_path / "calls", QUIET.append)
    ours, theirs = last_variables(tmp_path / "calls"), last_variables(finished[0])
    for path, leaf in flatten_dict(theirs["params"]).items():
        np.testing.assert_allclose(flatten_dict(ours["params"])[path], leaf, atol=1e-5)


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


def test_warm_start_takes_all_weights_or_says_what_is_missing(data, finished, tmp_path):
    lines = []
    config = tiny_config(data, "none", init_from=str(finished[0]), steps=1)
    train(config, tmp_path / "warm", lines.append)
    assert lines[1].startswith("warm start: 21 tensors")
    initial = load_weights(tmp_path / "warm" / "initial_weights.npz")["params"]
    for path, leaf in flatten_dict(load_weights(finished[0] / "model.scap")["params"]).items():
        np.testing.assert_array_equal(flatten_dict(initial)[path], leaf)
    config.model.attention_size = 11
    expected = r"attention/alpha/kernel has shape \(10, 1\), expected \(11, 1\)"
    with pytest.raises(CheckpointError, match=expected):
        train(config, tmp_path / "other", QUIET.append)


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


def test_evaluation_of_a_run_writes_captions_and_scores(finished, data, tmp_path):
    result = evaluate_run(finished[0], beam_size=2, output=tmp_path, report=QUIET.append)
    captions = read_json(tmp_path / "captions.json")
    split = read_json(data / "dataset_toy.json")["images"]
    assert [entry["image_id"] for entry in captions] == [
        image["cocoid"] for image in split if image["split"] == "test"
    ]
    assert all(entry["log_prob"] < 0 for entry in captions)
    assert read_json(tmp_path / "scores.json") == result
    assert result["images"] == SIZES[2]
    assert (result["nonzeros"], result["bytes"]) == (
        finished[1]["nonzeros"],
        finished[1]["bytes"],
    )
    references = {image["cocoid"]: [s["raw"] for s in image["sentences"]] for image in split}
    alone = score_captions(
        {entry["image_id"]: entry["caption"] for entry in captions},
        {entry["image_id"]: references[entry["image_id"]] for entry in captions},
        metrics=("CIDEr", "Bleu_4"),
        tokenizer="python",
    )
    assert result["CIDEr"] == pytest.approx(alone["CIDEr"], rel=1e-9)
    assert result["Bleu_4"] == pytest.approx(alone["Bleu_4"], rel=1e-9)


def test_evaluation_takes_the_weights_of_a_step(finished, tmp_path):
    options = {"metrics": ("CIDEr",), "tokenizer": "python", "report": QUIET.append}
    last = evaluate_run(finished[0], step="last", **options)
    assert (last["bytes"], last["images"]) == (None, SIZES[2])
    assert read_json(finished[0] / "test_beam_2_last/scores.json") == last
    assert evaluate_run(finished[0], step=STEPS, output=tmp_path, **options) == last
    raw = last_variables(finished[0])
    run = load_run(finished[0], STEPS)
    for path, mask in flatten_dict(run.masks).items():
        np.testing.assert_array_equal(mask, flatten_dict(raw["masks"])[path] > 0)
        weight = flatten_dict(raw["params"])[path]
        np.testing.assert_array_equal(flatten_dict(run.params)[path], np.where(mask, weight, 0))
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 5; there are (8, )?12"):
        evaluate_run(finished[0], step=5, **options)
    with pytest.raises(ConfigError, match="step is 'first'; expected a number, 'last' or 'best'"):
        evaluate_run(finished[0], step="first", **options)


def test_score_test_ends_training_with_the_test_split(data, finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    recipe = "from tiny_runs import tiny_config\n\ndef get_config():\n"
    recipe += f"    return tiny_config({str(data)!r})\n"
    (tmp_path / "recipe.py").write_text(recipe)
    tests = pathlib.Path(__file__).parents[1]
    command = [sys.executable, str(tests.parent / "launch/train.py"), "--score_test"]
    command += [f"--config={tmp_path / 'recipe.py'}", f"--workdir={tmp_path / 'run'}"]
    path = os.pathsep.join(map(str, (tests.parent, tests)))
    environment = {**os.environ, "PYTHONPATH": path, "PATH": ""}  # no Java: no METEOR
    call = {"capture_output": True, "text": True, "env": environment}
    done = subprocess.run(command, check=True, **call)
    scores = read_json(tmp_path / "run/test_beam_2/scores.json")
    assert scores["images"] == SIZES[2]
    last = next(line for line in done.stdout.splitlines() if line.startswith("test, beam 2: "))
    assert f"| CIDEr {scores['CIDEr']:.4f} " in last
    assert last.endswith(" images/s")


def test_snip_prunes_before_the_first_step(data, tmp_path):
    config = tiny_config(data, "snip", steps=1, eval_every=1)
    summary = train(config, tmp_path, QUIET.append)
    assert summary["sparsity"] == pytest.approx(0.5, abs=1e-4)


def test_recipes_of_all_kinds(data, finished, tmp_path):
    """Rewired in training; straight-through; a trained run pruned; the masks of a pruned run."""
    sources = {"rigl": "", "magnitude_ste": "", "mag_uniform": finished[0]}
    sources["mask_freeze"] = tmp_path / "mag_uniform"
    found = {}
    for name, source in sources.items():
        config = tiny_config(data, name, steps=4, init_from=str(source))
        found[name] = train(config, tmp_path / name, QUIET.append)
        rows = {row["tensor"]: row for row in read_csv(tmp_path / name / "sparsity/tensors.csv")}
        assert found[name]["best_step"] == 4
        assert int(rows["(prunable)"]["nonzeros"]) == found[name]["nonzeros"]
        assert float(rows["attention/alpha/kernel"]["sparsity"]) == 0.5
    masks = [load_weights(tmp_path / name / "model.scap")["masks"] for name in list(sources)[2:]]
    jax.tree.map(np.testing.assert_array_equal, *masks)
    lines = []
    report_run(tmp_path / "rigl", lines.append)
    assert lines[-1].endswith("sparsity/report.png")


def test_pruners_that_need_a_trained_run_say_so(data, tmp_path):
    with pytest.raises(ConfigError, match="'lottery_mag_blind' starts from another run"):
        train(tiny_config(data, "lottery_mag_blind"), tmp_path, QUIET.append)


def test_a_lottery_ticket_goes_back_to_the_initial_weights(data, finished, tmp_path):
    config = tiny_config(data, "lottery_mag_blind", init_from=str(finished[0]), steps=1)
    train(config, tmp_path / "ticket", QUIET.append)
    ours = load_weights(tmp_path / "ticket" / "initial_weights.npz")["params"]
    theirs = load_weights(finished[0] / "initial_weights.npz")["params"]
    for path, leaf in flatten_dict(theirs).items():
        np.testing.assert_array_equal(flatten_dict(ours)[path], leaf)


@pytest.mark.parametrize(("section", "field"), [("data", "dir"), ("train", "init_from")])
def test_a_wrong_path_leaves_no_run_directory(data, tmp_path, section, field):
    config = tiny_config(data)
    config[section][field] = str(tmp_path / "none")
    with pytest.raises(SparsecapError, match="none"):
        train(config, tmp_path / "run", QUIET.append)
    assert not (tmp_path / "run").exists()
