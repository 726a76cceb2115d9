"""Continuing a run with another config: what may change, and other lengths."""

import contextlib
import math
import os
import shutil
import signal

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from tiny_runs import STEPS, constant_config, make_data, tiny_config

from sparsecap_jax.data.toy_scenes import make_toy_scenes
from sparsecap_jax.errors import ConfigError, DataError, SparsecapError
from sparsecap_jax.files import read_csv, read_json
from sparsecap_jax.runs.checkpoints import Checkpoints
from sparsecap_jax.runs.directory import load_variables
from sparsecap_jax.runs.loop import train
from sparsecap_jax.stopping import Stopped, on_signals


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("scenes") / "toy")


@pytest.fixture(scope="module")
def short(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "short"
    train(constant_config(data, steps=8), workdir, [].append)
    return workdir


def last_params(workdir):
    with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        return flatten_dict(checkpoints.restore_variables(checkpoints.last_step())["params"])


def test_a_lengthened_run_is_a_long_one(data, short, tmp_path):
    train(constant_config(data, steps=STEPS), tmp_path / "whole", [].append)
    shutil.copytree(short, tmp_path / "longer")
    shutil.copytree(data, tmp_path / "moved")
    config, lines = constant_config(data, steps=STEPS), []
    config.data.dir = str(tmp_path / "moved")
    config.train.log_every = 1
    train(config, tmp_path / "longer", lines.append)
    assert lines[0].startswith("continuing from step 8 of ")
    assert lines[1] == (
        f"{tmp_path / 'longer' / 'config.json'}: continuing with another config: data.dir was "
        f"{str(data)!r}, is {str(tmp_path / 'moved')!r}; train.log_every was 2, is 1; "
        "train.steps was 8, is 12"
    )
    assert read_json(tmp_path / "longer" / "config.json")["train"]["steps"] == STEPS
    steps = [int(row["step"]) for row in read_csv(tmp_path / "longer" / "train.csv")]
    assert steps == [2, 4, 6, 8, 9, 10, 11, 12]
    whole = last_params(tmp_path / "whole")
    for path, leaf in last_params(tmp_path / "longer").items():
        np.testing.assert_array_equal(leaf, whole[path])


class Stop(Exception):
    """Ends a run after the step that was asked for."""


def test_a_schedule_over_the_whole_run_takes_the_new_length(data, tmp_path):
    """One step of SGD beyond a finished run of 2: its size is the rate of the new length."""
    deltas, low, high = {}, 1e-4, 1e-2

    def config(steps):
        config = tiny_config(data, "none", steps=steps, eval_every=1)
        changes = {"name": "sgd", "clip": "none", "learning_rate": high, "learning_rate_min": low}
        config.optimizer.update(changes)
        return config

    def stop(line):
        if line.startswith("step 3/") and "validation" in line:
            raise Stop

    train(config(2), tmp_path / "short", [].append)
    before = last_params(tmp_path / "short")
    for steps in (4, 6):
        shutil.copytree(tmp_path / "short", tmp_path / str(steps))
        with pytest.raises(Stop):
            train(config(steps), tmp_path / str(steps), stop)
        after = last_params(tmp_path / str(steps))
        deltas[steps] = np.concatenate([np.ravel(after[k] - before[k]) for k in before])
    rates = {n: low + (high - low) * (1 + np.cos(np.pi * 3 / n)) / 2 for n in deltas}
    moved = np.abs(deltas[6]) > 1e-5
    assert moved.sum() > 100
    ratio = deltas[4][moved] / deltas[6][moved]
    np.testing.assert_allclose(np.median(ratio), rates[4] / rates[6], rtol=1e-3)


def logged(workdir, column):
    """A column of train.csv by step."""
    rows = read_csv(workdir / "train.csv")
    return {int(row["step"]): float(row[column]) for row in rows}


def test_a_lengthened_run_anneals_its_supermask_over_the_new_epochs(data, tmp_path):
    """An epoch has 32 images / 8 = 4 steps. Step n logs the rate (1 + cos(pi (n - 1) / N)) / 2."""
    workdir, every_step = tmp_path / "run", {"steps": 0, "eval_every": 4, "log_every": 1}
    train(tiny_config(data, "supermask", epochs=1, **every_step), workdir, [].append)
    expected = {1: 1.0, 2: 0.8535534, 3: 0.5, 4: 0.1464466}
    assert logged(workdir, "anneal_rate") == pytest.approx(expected, rel=1e-6)
    lines = []
    train(tiny_config(data, "supermask", epochs=2, **every_step), workdir, lines.append)
    assert lines[0].startswith("continuing from step 4 of ")
    assert lines[1].endswith("train.epochs was 1, is 2")
    # Step 5 of 4 would have had the rate 0; as one of 8 steps it has half of the weight again.
    expected |= {5: 0.5, 6: 0.3086583, 7: 0.1464466, 8: 0.03806023}
    rates, gaps = logged(workdir, "anneal_rate"), logged(workdir, "sparsity_gap")
    assert rates == pytest.approx(expected, abs=1e-6)
    assert all(gap > 0.4 for gap in gaps.values())  # the loss below is worth comparing
    weighted = {step: 5.0 * (1.0 - expected[step]) * gaps[step] for step in expected}
    assert logged(workdir, "sparsity_loss") == pytest.approx(weighted, rel=1e-5, abs=1e-6)


def test_a_lengthened_run_follows_the_gradual_schedule_of_its_new_length(data, tmp_path):
    """Targets are 1/2 (1 - (1 - e / E)^3) at event e of E; step n logs those after n steps.

    Of 8 steps, events 0 to 2 fall on steps 2 to 4 (a quarter to a half); of 24 steps, events 0 to 8
    on steps 4 (an epoch) to 12.
    """
    workdir, every_step = tmp_path / "run", {"eval_every": 8, "log_every": 1}
    train(tiny_config(data, "mag_grad_uniform", steps=8, **every_step), workdir, [].append)
    targets = {1: 0.0, 2: 0.0, 3: 7 / 16} | dict.fromkeys(range(4, 9), 1 / 2)
    with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        masks = flatten_dict(checkpoints.restore_variables(8)["masks"])
    sizes = [mask.size for mask in masks.values()]

    def sparsities():
        """Whole entries are removed from each tensor."""
        removed = {n: sum(int(target * size) for size in sizes) for n, target in targets.items()}
        return {n: count / sum(sizes) for n, count in removed.items()}

    assert logged(workdir, "sparsity") == pytest.approx(sparsities(), rel=1e-6)
    train(tiny_config(data, "mag_grad_uniform", steps=24, **every_step), workdir, [].append)
    # Event 5 of 8 happens after 9 steps and brings weights back: 485/1024 instead of 1/2.
    targets |= {9: 485 / 1024, 10: 63 / 128, 11: 511 / 1024}
    targets |= dict.fromkeys(range(12, 25), 1 / 2)
    assert logged(workdir, "sparsity") == pytest.approx(sparsities(), rel=1e-6)


RESULTS = ("model.scap", "params.json", "summary.json")


def test_a_stopped_run_is_not_scored_with_older_weights(data, short, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(short, workdir)

    def signal_at(text):
        return lambda line: line.startswith(text) and os.kill(os.getpid(), signal.SIGTERM)

    def killed(line):
        raise Stop

    with pytest.raises(Stop):  # before the first new checkpoint
        train(constant_config(data, steps=STEPS), workdir, killed)
    assert all((workdir / name).exists() for name in RESULTS)
    with pytest.raises(Stopped) as stopped, on_signals():
        train(constant_config(data, steps=STEPS), workdir, signal_at("step 10/"), from_step=8)
    advice = "run the same command without --from_step to continue"
    # Step 10 is reported when step 11 is under way.
    assert str(stopped.value) == f"stopped at step 11 by SIGTERM; {advice}"
    assert not any((workdir / name).exists() for name in RESULTS)
    newest = flatten_dict(load_variables(workdir, step="last")["params"])
    for path, leaf in last_params(workdir).items():
        np.testing.assert_array_equal(newest[path], leaf)
    lines = []
    train(constant_config(data, steps=STEPS), workdir, lines.append)
    assert lines[0].startswith("continuing from step 11 of ")
    assert all((workdir / name).exists() for name in RESULTS)


def test_a_config_of_any_size_is_not_read(data, short, tmp_path):
    shutil.copytree(short, tmp_path / "run")
    os.truncate(tmp_path / "run/config.json", 2**21)
    with pytest.raises(DataError, match=r"config\.json: 2097152 bytes; expected settings of at"):
        train(constant_config(data, steps=STEPS), tmp_path / "run", [].append)


def test_a_model_too_large_to_be_read_back_is_not_trained(data, tmp_path, monkeypatch):
    monkeypatch.setattr("sparsecap_jax.runs.loop.MAX_WEIGHTS", 1000)
    with pytest.raises(ConfigError, match=r"config\.model: \d+ weights; expected at most 1000$"):
        train(constant_config(data, steps=STEPS), tmp_path / "run", [].append)
    assert not (tmp_path / "run").exists()


def test_a_run_cannot_become_shorter_than_it_is(data, short):
    before = (short / "config.json").read_text()
    with pytest.raises(ConfigError, match=r"config\.train: 6 steps in all, but .* trained for 8"):
        train(constant_config(data, steps=6), short, [].append)
    assert (short / "config.json").read_text() == before


def test_other_changes_are_refused(data, short):
    before = (short / "config.json").read_text()
    config = constant_config(data, steps=STEPS)
    config.optimizer.learning_rate = 1e-3
    with pytest.raises(ConfigError, match=r"\(optimizer\.learning_rate was .*new --workdir"):
        train(config, short, [].append)
    assert (short / "config.json").read_text() == before


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("data", "batch_size", 33), ("model", "rnn_size", -3), ("eval", "length_penalty", "bogus")],
)
def test_a_faulty_config_leaves_no_run_directory(data, tmp_path, section, key, value):
    config = tiny_config(data)
    config[section][key] = value
    with pytest.raises(ConfigError, match=rf"config\.{section}\.{key}"):
        train(config, tmp_path / "run", [].append)
    assert not (tmp_path / "run").exists()


LATE_FAULTS = (
    ("pruner", {"exclude": ("nope",)}, "pruner.exclude: 'nope' matches none"),
    ("pruner", {"overrides": ("nope",)}, "pruner.overrides: 'nope'"),
    ("scst", {"start_epoch": 1, "document_frequency": "nope.npz"}, "nope.npz"),
    ("train", {"init_from": "nope"}, "nope: no such file or folder; expected a run, or"),
    ("", {"seed": 10**20}, "config.seed is 1"),
    ("train", {"steps": 10**11}, "config.train.steps is 1"),
    ("optimizer", {"learning_rate": math.inf}, "config.optimizer.learning_rate is inf"),
)


def test_faults_found_late_leave_no_run_directory_either(data, tmp_path):
    """After all of them a run may still begin there."""
    for section, fields, message in LATE_FAULTS:
        config = tiny_config(data)
        place = config[section] if section else config
        with config.unlocked(), place.ignore_type():
            for key, value in fields.items():
                place[key] = value
        with pytest.raises(SparsecapError, match=message):
            train(config, tmp_path / "run", [].append)
        assert not (tmp_path / "run").exists()
    train(constant_config(data, steps=1), tmp_path / "run", [].append)


def test_continuing_with_other_data_leaves_the_config(data, short, tmp_path):
    shutil.copytree(short, tmp_path / "run")
    before = (tmp_path / "run" / "config.json").read_text()
    config = constant_config(data, steps=STEPS)
    config.data.dir = str(make_toy_scenes(tmp_path / "other", sizes=(40, 6, 6)))
    with pytest.raises(SparsecapError, match="the saved position is in other data"):
        train(config, tmp_path / "run", [].append)
    assert (tmp_path / "run" / "config.json").read_text() == before
