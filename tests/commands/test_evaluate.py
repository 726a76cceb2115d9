"""Runs by name: a captioner of the package stands wherever a run directory does."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from captioner_runs import make_run, write_features
from flax.traverse_util import flatten_dict
from PIL import Image

from sparsecap_jax.captioner import Captioner
from sparsecap_jax.captioning.batches import Caption, to_coco
from sparsecap_jax.captioning.stream import CaptionStream
from sparsecap_jax.commands.compare import compare_captions
from sparsecap_jax.commands.convert import export_reference
from sparsecap_jax.commands.evaluate import evaluate_run
from sparsecap_jax.commands.report import report_run
from sparsecap_jax.data.datasets import Dataset, load_dataset
from sparsecap_jax.data.karpathy import Record
from sparsecap_jax.data.stores import open_store
from sparsecap_jax.errors import CheckpointError, ConfigError, DataError, SparsecapError
from sparsecap_jax.files import read_csv, read_json, write_json
from sparsecap_jax.runs import published
from sparsecap_jax.runs.collection import read_run
from sparsecap_jax.runs.directory import load_run, save_run
from sparsecap_jax.runs.overrides import change_data
from sparsecap_jax.runs.published import resolve_run
from sparsecap_jax.runs.weights import load_weights, save_weights
from sparsecap_jax.stopping import Stopped, on_signals

COUNT = 3
REPO = pathlib.Path(__file__).parents[2]
TEXTS = ["a big dog runs home", "the small cat sleeps", "two red birds"]
FAST = {"metrics": ["ROUGE_L"], "tokenizer": "python", "report": lambda line: None}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with one captioner, `tiny`, and an empty working folder."""
    folder = tmp_path / "package"
    make_run(folder / "tiny")
    (tmp_path / "work").mkdir()
    monkeypatch.setattr(published, "_FOLDER", folder)
    monkeypatch.chdir(tmp_path / "work")
    return folder


def test_names_stand_for_runs_unless_there_is_such_a_folder(package):
    assert resolve_run("tiny") == package / "tiny"
    assert resolve_run("runs/tiny") == pathlib.Path("runs/tiny")
    assert resolve_run(pathlib.Path("other")) == pathlib.Path("other")
    with pytest.raises(CheckpointError, match=r"^other: no such file or .* captioner .*\(tiny"):
        resolve_run("other")
    pathlib.Path("tiny").mkdir()
    assert resolve_run("tiny") == pathlib.Path("tiny")


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
        def __getattr__(self, name):
            return getattr(dataset.store, name)

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


def test_a_report_by_name_does_without_logs_and_initial_weights(package):
    before = sorted(package.rglob("*"))
    weights = load_weights(package / "tiny/model.scap")
    matrices = [leaf for leaf in jax.tree.leaves(weights["params"]) if leaf.ndim == 2]
    kept = sum(int(np.count_nonzero(leaf)) for leaf in matrices)
    lines = []
    report_run("tiny", lines.append)
    assert lines[-1] == "wrote tiny_sparsity/tensors.csv and tiny_sparsity/report.png"
    rows = {row["tensor"]: row for row in read_csv(pathlib.Path("tiny_sparsity/tensors.csv"))}
    assert int(rows["(prunable)"]["nonzeros"]) == kept
    with Image.open("tiny_sparsity/report.png") as picture:
        assert picture.width > 1000
    assert sorted(package.rglob("*")) == before


def test_an_export_by_name(package, tmp_path):
    (tmp_path / ".exported.abcd1234").mkdir()  # of a killed command
    path = export_reference("tiny", tmp_path / "exported", report=lambda line: None)
    assert not [*tmp_path.glob(".exported*")]
    assert path == tmp_path / "exported/model_best.pth" and path.exists()


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


@pytest.fixture
def coco(tmp_path):
    """A dataset whose test split has three images; runs of `make_run` do not know where it is."""
    folder = tmp_path / "coco"
    write_features(folder / "bu", COUNT)
    images = [
        {
            "cocoid": 100 + number,
            "filename": f"{100 + number}.jpg",
            "split": "test",
            "sentences": [{"raw": text, "tokens": text.split()}],
        }
        for number, text in enumerate(TEXTS)
    ]
    write_json(folder / "dataset_coco.json", {"dataset": "coco", "images": images})
    return folder


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


def test_runs_are_compared(coco, tmp_path):
    """Runs without results are captioned first; references are those of their dataset."""
    runs = [make_run(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    options = {"changes": [f"data.dir={coco}"], "metrics": ["ROUGE_L"], "tokenizer": "python"}
    captions = evaluate_run(runs[1], no_repeat_ngram=1, **{**options, **FAST})
    lines = []
    result = compare_captions(
        runs,
        output=tmp_path / "out",
        report=lines.append,
        no_repeat_ngram=1,
        **options,
    )
    assert result["models"]["b"]["ROUGE_L"]["score"] == pytest.approx(captions["ROUGE_L"])
    assert (runs[0] / "test_beam_2/scores.json").exists()
    rows = read_csv(tmp_path / "out/comparison_per_image.csv")
    assert list(rows[0]) == ["image_id", "a caption", "a ROUGE_L", "b caption", "b ROUGE_L"]
    assert len(rows) == COUNT
    assert read_json(tmp_path / "out/comparison.json")["images"] == COUNT
    assert "a minus b:" in lines
    assert read_run(runs[0], "a").results.keys() == {"test_beam_2"}
    shutil.copy(runs[1] / "model.scap", runs[0] / "model.scap")  # trained on, say
    assert read_run(runs[0], "a").results.keys() == {"test_beam_2, of other weights"}
    with pytest.raises(DataError, match=r"a/test_beam_2: made by other weights than the run has"):
        compare_captions(runs, **options)


def test_model_files_and_names_are_compared(coco, package, tmp_path):
    """Their results lie next to a file, and in the working folder; those that are there count."""
    model = tmp_path / "m.scap"
    shutil.copy(make_run(tmp_path / "run") / "model.scap", model)
    options = {"changes": [f"data.dir={coco}"], "metrics": ["ROUGE_L"], "report": [].append}
    result = compare_captions([model, "tiny"], beam_size=1, **options)
    assert [*result["models"]] == ["m.scap", "work/tiny"]
    written = [tmp_path / "m.scap_test_beam_1", pathlib.Path("tiny_test_beam_1")]
    assert all((folder / "captions.json").is_file() for folder in written)
    write_json(written[1] / "captions.json", {str(100 + n): [t] for n, t in enumerate(TEXTS)})
    again = compare_captions([str(model), "tiny"], **options)
    assert again["models"]["work/tiny"]["ROUGE_L"]["score"] == 1
    with pytest.raises(CheckpointError, match="absent: no such file or folder; expected a run, or"):
        compare_captions([model, "absent"], **options)


def test_files_of_captions_are_compared(tmp_path):
    texts = ["a big dog runs home", "the small cat sleeps", "two red birds"]
    write_json(tmp_path / "r.json", {str(n): [text] for n, text in enumerate(texts)})
    write_json(tmp_path / "one/captions.json", {str(n): [text] for n, text in enumerate(texts)})
    other = {"0": ["a big cat runs home"], "1": [texts[1]], "2": [texts[2]], "9": ["x"]}
    write_json(tmp_path / "other.json", other)
    lines = []
    sources = [tmp_path / "one", tmp_path / "other.json"]
    compare_captions(
        sources, references=tmp_path / "r.json", metrics=["ROUGE_L"], report=lines.append
    )
    assert lines[:2] == [
        "other: left out because others lack them: 1 image",
        "3 images; 95% intervals from images drawn with replacement",
    ]
    assert lines[3].split()[:3] == ["one", "1", "1.000"]
    assert "  ROUGE_L  +0.0667 [" in lines[6] and "better on 1 image, worse on 0" in lines[6]
    assert lines[7:] == ["  words gained: dog 1 (1 right)", "  words lost: cat 1 (0 right)"]
    command = [sys.executable, str(REPO / "launch/evaluate.py"), "--compare", *map(str, sources)]
    command += [f"--references={tmp_path / 'r.json'}", f"--output={tmp_path / 'out'}"]
    message = "--ensemble, --groups: expected without --compare only"
    with pytest.raises(subprocess.CalledProcessError) as caught:
        subprocess.run([*command, "--ensemble", "--groups=g"], check=True, capture_output=True)
    assert message.encode() in caught.value.stderr
    environment = {**os.environ, "PYTHONPATH": str(REPO), "PATH": ""}  # no Java: no METEOR
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert "one minus other:\n  CIDEr " in done.stdout
    assert (tmp_path / "out/comparison.json").exists()
    for bad, message in (
        ([sources[0]], "nothing to compare one with"),
        ([sources[0], sources[0] / "captions.json"], "a source comes twice"),
        ([sources[0], tmp_path / "absent"], "absent"),
    ):
        with pytest.raises(SparsecapError, match=message):
            compare_captions(bad, references=tmp_path / "r.json", metrics=["ROUGE_L"])
    with pytest.raises(ConfigError, match=r"no run among the sources; expected --references=FILE"):
        compare_captions(sources, metrics=["ROUGE_L"])
    write_json(tmp_path / "r.json", {"7": ["a"]})
    with pytest.raises(DataError, match=r"one, other: 3 images in common, 3 of them without ref"):
        compare_captions(sources, references=tmp_path / "r.json", metrics=["ROUGE_L"])


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
