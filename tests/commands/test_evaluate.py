"""Evaluation of runs: by name, on a dataset elsewhere, stopped, as an ensemble, in a table."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from captioner_runs import make_run, write_features
from evaluate_cases import COUNT, FAST, TEXTS
from flax.traverse_util import flatten_dict

from sparsecap_jax.captioner import Captioner
from sparsecap_jax.captioning.batches import Caption, to_coco
from sparsecap_jax.captioning.stream import CaptionStream
from sparsecap_jax.commands.evaluate import evaluate_run
from sparsecap_jax.commands.report import report_run
from sparsecap_jax.data.datasets import Dataset, load_dataset
from sparsecap_jax.data.karpathy import Record
from sparsecap_jax.data.stores import open_store
from sparsecap_jax.errors import CheckpointError, ConfigError, DataError, SparsecapError
from sparsecap_jax.files import read_csv, read_json, write_json
from sparsecap_jax.runs.directory import load_run, save_run
from sparsecap_jax.runs.overrides import change_data
from sparsecap_jax.runs.weights import load_weights, save_weights
from sparsecap_jax.stopping import Stopped, on_signals

REPO = pathlib.Path(__file__).parents[2]


def test_a_run_is_evaluated_by_name_and_nothing_is_written_to_the_package(package, tmp_path):
    features = write_features(tmp_path / "features", COUNT)
    before = sorted(package.rglob("*"))
    captioner = Captioner.load("tiny")
    found = captioner.caption_folder(features, beam_size=2)
    captions = {image_id: max(each, key=lambda one: one.score).text for image_id, each in found}
    records = [Record(image_id, raw=(text or "x",)) for image_id, text in captions.items()]
    dataset = Dataset({"test": records}, open_store(features, 6, False), tmp_path)
    scores = evaluate_run("tiny", dataset=dataset, metrics=["ROUGE_L"], report=lambda line: None)
    assert scores["ROUGE_L"] == pytest.approx(1.0)
    entries = json.loads(pathlib.Path("tiny_test_beam_2/captions.json").read_text())
    assert {entry["image_id"]: entry["caption"] for entry in entries} == captions
    in_place = evaluate_run(
        package / "tiny", dataset=dataset, metrics=["ROUGE_L"], report=lambda line: None
    )
    assert in_place == scores
    written = {path.relative_to(package) for path in set(package.rglob("*")) - set(before)}
    folder = pathlib.Path("tiny/test_beam_2")
    names = ("captions.json", "scores.json", "scores_per_image.csv", "score_best_detailed.json")
    assert written == {folder, *(folder / name for name in names)}


def test_an_evaluation_that_a_signal_stopped_continues(coco, tmp_path):
    run, lines = make_run(tmp_path / "run"), []
    dataset = load_dataset(change_data(load_run(run).config, [f"data.dir={coco}"]).data)
    options = {**FAST, "dataset": dataset, "changes": ["data.eval_batch_size=1"]}
    options |= {"report": lines.append, "no_repeat_ngram": 1}
    expected = evaluate_run(run, output=tmp_path / "whole", **options)

    class Signalled:
        feature_size, check = dataset.store.feature_size, dataset.store.check
        num_regions = dataset.store.num_regions

        def __getitem__(self, image_id):
            if image_id == dataset.splits["test"][1].image_id:
                os.kill(os.getpid(), signal.SIGTERM)
            return dataset.store[image_id]

    output, again = tmp_path / "output", {**options, "output": tmp_path / "output"}
    message = "^stopped by SIGTERM; run the same command to continue$"
    with pytest.raises(Stopped, match=message) as stopped, on_signals():
        evaluate_run(run, **{**again, "dataset": dataclasses.replace(dataset, store=Signalled())})
    assert stopped.value.code == 143
    assert [path.name for path in output.iterdir()] == ["captions.json.partial"]
    captioned = len((output / "captions.json.partial").read_text().splitlines()) - 1
    assert 1 <= captioned < COUNT
    with pytest.raises(DataError, match=r"json\.partial: was begun with .*; remove it to"):
        evaluate_run(run, **again, beam_size=1)
    assert evaluate_run(run, **again) == expected
    assert f"continuing: {captioned} of {COUNT} images captioned" in lines
    for name in ("captions.json", "scores.json"):
        assert (output / name).read_text() == (tmp_path / "whole" / name).read_text()
    strays = [output / ".scores.json.abcd1234", output / ".captions.json.abcd1234"]
    for stray in strays:
        stray.write_text("")
    evaluate_run(run, **again)
    assert not any(stray.exists() for stray in strays)


def test_captions_of_other_weights_are_not_continued(coco, tmp_path):
    run, options = make_run(tmp_path / "run"), {"changes": [f"data.dir={coco}"], **FAST}
    evaluate_run(run, **options)
    settings = CaptionStream.__init__
    first = []

    def noted(stream, path, given, key="image_id"):
        first.append(given)
        settings(stream, path, given, key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CaptionStream, "__init__", noted)
        evaluate_run(run, **options)
        make_run(run, seed=1)
        evaluate_run(run, **options)
    assert first[0].pop("weights") != first[1].pop("weights")
    assert first[0] == first[1]


def test_a_second_evaluation_into_a_folder_is_refused(coco, tmp_path):
    run, output = make_run(tmp_path / "run"), tmp_path / "output"
    holder = f"captions\\.json: process {os.getpid()} on .* is writing to it"
    with CaptionStream(output / "captions.json", {}), pytest.raises(SparsecapError, match=holder):
        evaluate_run(run, output=output, changes=[f"data.dir={coco}"], **FAST)


def test_a_dense_run_has_no_masks(tmp_path):
    """Its bias, which is mostly 0, is stored as a sparse leaf."""
    run = make_run(tmp_path / "run")
    save_run(run, load_run(run), form="npz")
    assert load_weights(run / "weights.npz")["masks"]
    assert load_run(run).masks == {}


def test_a_report_on_a_dense_run_counts_what_could_be_pruned(tmp_path):
    """Biases, even if most are 0 and stored as sparse, are none of it."""
    save_run(tmp_path / "run", load_run(make_run(tmp_path / "run")), form="npz")
    weights, lines = load_weights(tmp_path / "run/weights.npz"), []
    params = weights["params"]
    assert list(flatten_dict(weights["masks"], sep="/")) == ["logit_0/bias"]
    report_run(tmp_path / "run", lines.append)
    size = sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim == 2)
    row = next(line for line in lines if line.endswith("all prunable weights"))
    assert row.split()[:6] == ["0.0000%", "sparse", f"{size:,}", "of", f"{size:,}", "kept"]
    save_weights(tmp_path / "run/weights.npz", {"kernel": np.ones((2, 3))})
    with pytest.raises(CheckpointError, match=r"not as config\.json and tokenizer say: weight"):
        report_run(tmp_path / "run", lines.append)


def folder_captions(runs, features, **search):
    captioner = Captioner.load(runs)
    captions = captioner.caption_folder(features, attention=True, **search)
    return {image_id: max(each, key=lambda one: one.score) for image_id, each in captions}


def test_a_run_without_its_dataset_is_scored_on_the_one_that_is_named(coco, tmp_path):
    run = make_run(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"config\.data\.dir is empty; .*--config\.data\.dir=DIR"):
        evaluate_run(run, **FAST)
    moved = coco.rename(tmp_path / "moved")
    features = (moved / "bu").rename(tmp_path / "features")
    changes = [f"data.dir={moved}", f"data.features={features}"]
    scores = evaluate_run(run, changes=changes, attention=True, no_repeat_ngram=1, **FAST)
    assert scores["images"] == COUNT
    expected = folder_captions(run, features, beam_size=2, no_repeat_ngram=1)
    for entry in read_json(run / "test_beam_2/captions.json"):
        caption = expected[entry["image_id"]]
        assert entry["caption"] == caption.text
        np.testing.assert_allclose(entry["attention"], caption.attention, atol=1e-5)
    for change, message in (
        ("model.rnn_size=3", r"config\.model\.rnn_size: a trained model keeps it"),
        ("data.feature_size=3", r"config\.data\.feature_size: a trained model keeps it"),
        (
            "data.dir=/nowhere",
            r"/nowhere: no such file or folder; .* \(--data_dir\)$",
        ),
        ("data.dri=x", r"config\.data\.dri: unknown key; did you mean 'dir'"),
    ):
        with pytest.raises(ConfigError, match=message):
            evaluate_run(run, changes=[change], **FAST)
    with pytest.raises(DataError, match=r"val split of .*moved: no images"):
        evaluate_run(run, split="val", changes=changes, **FAST)


def test_attention_that_is_there_is_kept_and_another_search_is_said(coco, tmp_path):
    run, lines = make_run(tmp_path / "run"), []
    options = {**FAST, "changes": [f"data.dir={coco}"], "report": lines.append}
    file = run / "test_beam_2/captions.json"

    def rows():
        return [len(entry.get("attention", ())) for entry in read_json(file)]

    evaluate_run(run, **options)
    assert rows() == [0] * COUNT
    evaluate_run(run, attention=True, no_repeat_ngram=1, **options)
    whole = rows()
    assert all(whole)
    said = f"{file.parent}: has attention, which is made anew (--noattention leaves it out)"
    assert f"{file.parent}: results of no no_repeat_ngram are replaced" in lines
    assert said not in lines
    lines.clear()
    evaluate_run(run, no_repeat_ngram=1, **options)
    assert rows() == whole and lines[0] == said and "replaced" not in " ".join(lines)
    lines.clear()
    evaluate_run(run, attention=False, **options)
    assert rows() == [0] * COUNT and said not in lines
    assert lines[0] == f"{file.parent}: results of no_repeat_ngram 1 are replaced"
    with pytest.raises(ConfigError, match=r"option beam_sise: unknown; did you mean 'beam_size'"):
        evaluate_run(run, beam_sise=3, **options)


def test_a_run_is_evaluated_by_its_own_search(coco, tmp_path):
    run, folder = make_run(tmp_path / "run"), tmp_path / "scores"
    options = {**FAST, "changes": [f"data.dir={coco}"], "output": folder}

    def captions(**search):
        evaluate_run(run, **options, **search)
        return [entry["caption"] for entry in read_json(folder / "captions.json")]

    three = captions(beam_size=3, no_repeat_ngram=1)
    one = captions(beam_size=1, no_repeat_ngram=1)
    plain = captions(beam_size=3)
    assert len({*map(tuple, (one, three, plain))}) == 3
    write_json(run / "search.json", {"beam_size": 3, "no_repeat_ngram": 1})
    assert captions() == three
    assert captions(beam_size=1) == one
    assert captions(search="beam", beam_size=3) == plain


def test_a_folder_of_another_dataset_is_recognized(coco, tmp_path):
    run = make_run(tmp_path / "run")
    (coco / "dataset_coco.json").unlink()
    images = [
        {"filename": f"{100 + n}.jpg", "split": "test", "captions": [text]}
        for n, text in enumerate(TEXTS)
    ]
    write_json(coco / "captions.json", {"images": images})
    changes = [f"data.dir={coco}"]
    with pytest.raises(DataError, match=r"looks like photos: try --config\.data\.name=photos$"):
        evaluate_run(run, changes=changes, **FAST)
    scores = evaluate_run(run, changes=[*changes, "data.name=photos"], **FAST)
    assert scores["images"] == COUNT


def test_an_ensemble_is_scored_as_one(coco, tmp_path):
    runs = [make_run(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    options = {"changes": [f"data.dir={coco}"], **FAST}
    with pytest.raises(ConfigError, match="output is None; expected a folder"):
        evaluate_run(runs, **options)
    scores = evaluate_run(runs, output=tmp_path / "both", no_repeat_ngram=1, **options)
    entries = read_json(tmp_path / "both/captions.json")
    together = folder_captions(runs, coco / "bu", beam_size=2, no_repeat_ngram=1)
    alone = folder_captions(runs[0], coco / "bu", beam_size=2, no_repeat_ngram=1)
    assert {e["image_id"]: e["caption"] for e in entries} == {
        image_id: caption.text for image_id, caption in together.items()
    }
    assert together != alone
    assert scores["bytes"] == sum((run / "model.scap").stat().st_size for run in runs)
    singles = [evaluate_run(run, **options) for run in runs]
    assert scores["nonzeros"] == sum(single["nonzeros"] for single in singles)


def test_a_missing_caption_has_no_log_prob():
    """JSON has no infinity."""
    entry = to_coco(3, Caption("", -np.inf, (), -np.inf, np.zeros((0, 4), np.float32)))
    assert entry == {"image_id": 3, "caption": "", "log_prob": None, "attention": []}


def test_flags_of_runs_are_refused_with_captions():
    files = ["--captions=c.json", "--references=r.json"]
    given = ["--step=3", "--data_dir=d", "--features=f", "--attention", "--ensemble"]
    given += ["--split=val", "--config.data.name=coco", "--beam_size=3"]
    command = [sys.executable, str(REPO / "launch/evaluate.py"), *files, *given]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    named = "--ensemble, --step, --split, --data_dir, --features, --config.SECTION.FIELD, "
    message = f"error: {named}--attention, --beam_size: expected with --checkpoint only; "
    assert (done.returncode, done.stdout, done.stderr[: len(message)]) == (1, "", message)


def test_the_command_makes_a_table_of_several_runs(coco, tmp_path):
    runs = [make_run(tmp_path / name / "run", seed=seed) for seed, name in enumerate("ab")]
    command = [sys.executable, str(REPO / "launch/evaluate.py"), f"--data_dir={coco}"]
    command += [f"--checkpoint={run}" for run in runs]
    output = tmp_path / "out"
    environment = {**os.environ, "PYTHONPATH": str(REPO), "PATH": ""}  # no Java: no METEOR
    call = {"capture_output": True, "text": True, "env": environment}
    flags = [f"--output={output}", "--config.data.eval_batch_size=2", "--beam_size=3"]
    done = subprocess.run([*command, *flags], check=True, **call)
    assert done.stdout.count(" images/s\n") == 2
    rows = read_csv(output / "scores.csv")
    assert [row["run"] for row in rows] == ["a_run", "b_run"]
    for row, run in zip(rows, runs, strict=True):
        result = evaluate_run(run, changes=[f"data.dir={coco}"], beam_size=3, **FAST)
        assert float(row["ROUGE_L"]) == pytest.approx(result["ROUGE_L"])
        assert int(row["nonzeros"]) == result["nonzeros"]
        shown = [row["run"], f"{result['sparsity']:.3f}", f"{result['nonzeros']:,}"]
        assert shown in [line.split()[:3] for line in done.stdout.splitlines()]
        assert (output / row["run"] / "captions.json").exists()
    done = subprocess.run([*command, "--ensemble"], **call)
    assert done.returncode == 1
    assert done.stderr.startswith("error: --ensemble needs several checkpoints, and a folder")


def test_patterns_that_fit_no_weight_name_the_config_of_the_run(tmp_path):
    run = make_run(tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["pruner"]["exclude"] = ["["]
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"run/config\.json: pruner\.exclude: '\['"):
        load_run(run)
