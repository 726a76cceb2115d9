"""Run directories that earlier releases wrote: they continue and caption as they did.

`tests/golden/runs/old_runs.tar.xz` was written by release 0.1.0 before its redesign: twelve steps
of `tiny_runs.tiny_config("DATA", "supermask")` with layers of 4 units, stopped after step 10
(`stopped/`, its last checkpoint is step 8), the finished run, and what it ended with.
"""

import json
import pathlib
import tarfile

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from tiny_runs import make_data

from sparsecap_jax.captioner import Captioner
from sparsecap_jax.data.datasets import load_dataset
from sparsecap_jax.files import read_csv
from sparsecap_jax.runs.checkpoints import Checkpoints
from sparsecap_jax.runs.config import from_dict
from sparsecap_jax.runs.loop import train

ARCHIVE = pathlib.Path(__file__).parents[1] / "golden" / "runs" / "old_runs.tar.xz"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("old")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(path, filter="data")
    make_data(path / "DATA")
    return path


def test_a_stopped_run_continues_to_the_same_end(folder, monkeypatch):
    monkeypatch.chdir(folder)
    config = from_dict(json.loads((folder / "stopped/config.json").read_text()), "config.json")
    lines = []
    train(config, folder / "stopped", lines.append)
    assert lines[0].startswith("continuing from step 8 ")
    checkpoints = Checkpoints(folder / "stopped", read_only=True)
    variables = checkpoints.restore_variables(12)
    checkpoints.close()
    with np.load(folder / "expected.npz") as expected:
        for part in ("params", "masks"):
            for path, leaf in flatten_dict(variables[part]).items():
                name = "/".join((part, *path))
                np.testing.assert_allclose(leaf, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
    tables = (folder / "train.csv", folder / "stopped/train.csv")
    losses = [[float(row["loss"]) for row in read_csv(table)] for table in tables]
    assert len(losses[0]) == 6
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_a_finished_run_gives_the_same_captions(folder, monkeypatch):
    monkeypatch.chdir(folder)
    captioner = Captioner.load(folder / "finished")
    dataset = load_dataset(captioner.config.data)
    image_ids = [record.image_id for record in dataset.splits["test"]]
    search = {"beam_size": 3, "no_repeat": True, "no_repeat_ngram": 1}
    captions = dict(captioner.caption_store(dataset.store, image_ids, **search))
    with np.load(folder / "expected.npz") as file:
        expected = json.loads(str(file["captions"]))
    assert len(expected) == 6
    for image_id, (best, *_) in captions.items():
        text, log_prob = expected[str(image_id)][0]
        assert best.text == text
        np.testing.assert_allclose(best.log_prob, log_prob, atol=1e-3)
