"""Runs by name: a captioner of the package stands wherever a run directory does."""

import json
import os
import pathlib
import signal

import jax
import numpy as np
import pytest
from captioner_runs import make_run, write_features
from PIL import Image

from sparsecap_jax.captioner import Captioner
from sparsecap_jax.commands.evaluate import evaluate_run
from sparsecap_jax.commands.report import report_run
from sparsecap_jax.data.datasets import Dataset
from sparsecap_jax.data.karpathy import Record
from sparsecap_jax.data.stores import open_store
from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.files import read_csv
from sparsecap_jax.runs import published
from sparsecap_jax.runs.published import resolve_run
from sparsecap_jax.runs.weights import load_weights
from sparsecap_jax.stopping import Stopped, on_signals

COUNT = 3


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
    with pytest.raises(CheckpointError, match=r"^other: neither a folder nor a captioner .*\(tiny"):
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
    assert written == {folder, folder / "captions.json", folder / "scores.json"}


def test_a_signal_stops_an_evaluation_before_the_next_image(package, tmp_path):
    store = open_store(write_features(tmp_path / "features", COUNT), 6, False)

    class Signalled:
        def __getattr__(self, name):
            return getattr(store, name)

        def __getitem__(self, image_id):
            os.kill(os.getpid(), signal.SIGTERM)
            return store[image_id]

    records = [Record(image_id, raw=("x",)) for image_id in store.image_ids()]
    dataset = Dataset({"test": records}, Signalled(), tmp_path)
    with pytest.raises(Stopped, match=r"^stopped by SIGTERM$") as stopped, on_signals():
        evaluate_run("tiny", dataset=dataset, report=lambda line: None)
    assert stopped.value.code == 143
    assert not list(pathlib.Path().iterdir())


def test_a_report_by_name_does_without_logs_and_initial_weights(package):
    before = sorted(package.rglob("*"))
    weights = load_weights(package / "tiny/weights.npz")
    kept = sum(int(np.count_nonzero(mask)) for mask in jax.tree.leaves(weights["masks"]))
    lines = []
    report_run("tiny", lines.append)
    assert lines[-1] == "wrote tiny_sparsity/tensors.csv and report.png"
    rows = {row["tensor"]: row for row in read_csv(pathlib.Path("tiny_sparsity/tensors.csv"))}
    assert int(rows["(prunable)"]["nonzeros"]) == kept
    with Image.open("tiny_sparsity/report.png") as picture:
        assert picture.width > 1000
    assert sorted(package.rglob("*")) == before
