"""What a run of the loop leaves behind, its evaluation, and runs of all kinds of pruners."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from loop_files import last_variables
from tiny_runs import SIZES, STEPS, constant_config, tiny_config

from sparsecap_jax.commands.convert import convert_run
from sparsecap_jax.commands.evaluate import evaluate_run
from sparsecap_jax.commands.report import report_run
from sparsecap_jax.errors import CheckpointError, ConfigError, DataError
from sparsecap_jax.evaluation.metrics import score_captions
from sparsecap_jax.files import read_csv, read_json, write_json
from sparsecap_jax.runs.config import pruner_section
from sparsecap_jax.runs.directory import load_run, steps_done
from sparsecap_jax.runs.loop import train
from sparsecap_jax.runs.weights import load_weights
from sparsecap_jax.stopping import Stopped, on_signals

QUIET = []


def test_a_run_leaves_logs_weights_and_a_summary(finished):
    workdir, summary, lines = finished
    initial = flatten_dict(load_weights(workdir / "initial_weights.npz")["params"])
    count = sum(leaf.size for leaf in initial.values())
    assert lines[0] == f"up_down: {count:,} parameters, 32 training images, {STEPS} steps"
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
    shown = next(line for line in finished.lines if line.startswith("step 2/"))
    assert f"| caption_loss {float(rows[0]['caption_loss']):.4g} | sparsity" in shown
    logits = flatten_dict(last_variables(workdir)["masks"], sep="/")
    flat = np.concatenate([leaf.ravel() for leaf in logits.values()]).astype(np.float64)
    probability = float(rows[-1]["mask_probability"])
    assert probability == pytest.approx(np.mean(1 / (1 + np.exp(-flat))), rel=1e-5)
    shown = next(
        line for line in finished.lines if f"{STEPS}/{STEPS} | " in line and "images/s" in line
    )
    sparsity = float(rows[-1]["sparsity"])
    assert sparsity == pytest.approx(np.mean(flat <= 0), abs=1e-7) and sparsity > 0
    named = f"| sparsity {sparsity:.4g} of {flat.size:,} weights with masks"
    assert shown.endswith(named)
    validation = {row["step"]: row["sparsity"] for row in read_csv(workdir / "validation.csv")}
    assert validation == {row["step"]: row["sparsity"] for row in rows if row["step"] in validation}
    shown = [line for line in finished.lines if "| validation: " in line]
    assert all(f" of {flat.size:,} weights with masks | off its target" in line for line in shown)
    summary = finished.summary
    assert summary["prunable"] == flat.size and "kept" not in summary
    assert summary["sparsity"] == pytest.approx(np.mean(flat <= 0), abs=1e-9)
    zeros = f"{summary['sparsity']:.2%} of {flat.size:,} prunable weights are 0"
    assert f" | {zeros}, {summary['nonzeros']:,} are not | " in finished.lines[-1]
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


def test_warm_start_takes_all_weights_or_says_what_is_missing(data, finished, tmp_path):
    lines = []
    config = constant_config(data, init_from=str(finished[0]), steps=1)
    train(config, tmp_path / "warm", lines.append)
    assert lines[1].startswith("warm start: 21 tensors")
    initial = load_weights(tmp_path / "warm" / "initial_weights.npz")["params"]
    for path, leaf in flatten_dict(load_weights(finished[0] / "model.scap")["params"]).items():
        np.testing.assert_array_equal(flatten_dict(initial)[path], leaf)
    config.model.attention_size = 11
    expected = r"attention/alpha/kernel has shape \(10, 1\), expected \(11, 1\)"
    with pytest.raises(CheckpointError, match=expected):
        train(config, tmp_path / "other", QUIET.append)


def test_the_steps_of_a_run_are_those_that_it_took(data, finished, tmp_path):
    assert steps_done(finished.workdir) == (STEPS, STEPS)
    workdir = tmp_path / "run"

    def report(text):
        if text.startswith("step 6/"):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped), on_signals():
        train(tiny_config(data), workdir, report)
    # Step 6 is reported when step 7 is under way.
    assert steps_done(workdir) == (7, 7)  # none came near its target: the last one counts
    write_json(workdir / "summary.json", {"step": 9, "best_step": 4})
    assert steps_done(workdir) == (9, 4)
    write_json(workdir / "summary.json", {"step": 9, "best_step": "x"})
    with pytest.raises(DataError, match=r"summary\.json: step is 'x'; expected a number"):
        steps_done(workdir)
    assert steps_done(tmp_path) is None


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
    convert_run(finished[0], tmp_path / "last.scap", step="last", report=QUIET.append)
    run = load_run(tmp_path / "last.scap")
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
        saved = load_weights(tmp_path / name / "model.scap")
        kept = {path: mask != 0 for path, mask in flatten_dict(saved["masks"]).items()}
        weights = flatten_dict(saved["params"])
        nonzeros = sum(np.count_nonzero(weights[path][mask]) for path, mask in kept.items())
        assert found[name]["nonzeros"] == nonzeros
        assert int(rows["(prunable)"]["nonzeros"]) == sum(mask.sum() for mask in kept.values())
        # Weights that RigL grows start at 0, and stay there without a gradient.
        assert (nonzeros < int(rows["(prunable)"]["nonzeros"])) == (name == "rigl")
        assert float(rows["attention/alpha/kernel"]["sparsity"]) == 0.5
    # Those that a lottery ticket would go back to have no zeros of the pruner's.
    initial = [load_weights(tmp_path / name / "initial_weights.npz") for name in list(sources)[:2]]
    jax.tree.map(np.testing.assert_array_equal, *initial)
    masks = [load_weights(tmp_path / name / "model.scap")["masks"] for name in list(sources)[2:]]
    jax.tree.map(np.testing.assert_array_equal, *masks)
    lines = []
    report_run(tmp_path / "rigl", lines.append)
    assert lines[-1].endswith("sparsity/report.png")


def test_movement_in_a_run(data, finished, tmp_path):
    """Scores of a trained run's weights: ranked to the target, or pushed below a threshold."""
    fields = {
        "movement": {"sparsity": 0.5},
        "soft_movement": {"threshold": 0.4, "sparsity_weight": 0.01},
    }
    rates = {"movement": 0.01, "soft_movement": 0.3}
    found = {}
    for name, values in fields.items():
        config = tiny_config(data, name, steps=4, eval_every=4, init_from=str(finished[0]))
        with config.unlocked():
            config.pruner = pruner_section(name, **values)
        config.optimizer.update(mask_learning_rate=rates[name], mask_epsilon=1e-8)
        found[name] = train(config, tmp_path / name, QUIET.append)
        assert found[name]["best_step"] == 4
        raw, run = last_variables(tmp_path / name), load_run(tmp_path / name)
        for path, scores in flatten_dict(raw["masks"]).items():
            np.testing.assert_array_equal(flatten_dict(run.masks)[path], scores > 0)
    assert found["movement"]["sparsity"] == pytest.approx(0.5, abs=1e-4)
    assert 0.1 < found["soft_movement"]["sparsity"] < 0.9


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
