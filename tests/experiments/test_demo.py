"""The demo: equal training for both models, and tables that count wrong facts."""

import pathlib

import numpy as np
from tiny_runs import make_data, tiny_config

from sparsecap_jax.data.datasets import load_dataset
from sparsecap_jax.experiments import demo
from sparsecap_jax.files import read_json, write_json
from sparsecap_jax.runs.overrides import load_config

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def test_both_models_get_the_same_steps():
    dense, sparse = (load_config(CONFIGS / "toy.py", arg) for arg in demo.MODELS.values())
    assert dense.train == sparse.train
    assert dense.data == sparse.data
    assert dense.model == sparse.model
    assert dense.optimizer.learning_rate == sparse.optimizer.learning_rate


def test_tables(tmp_path, monkeypatch):
    config = tiny_config(make_data(tmp_path / "toy"), "none")
    test = load_dataset(config.data, need_boxes=True).splits["test"]
    right = [{"image_id": record.image_id, "caption": record.raw[0]} for record in test]
    lies = [{**entry, "caption": "one blue cone"} for entry in right]
    captions = {"dense": right, "supermask": lies}

    def evaluate(workdir, report):
        folder = workdir / f"test_beam_{config.eval.beam_size_test}"
        write_json(folder / "captions.json", captions[workdir.name])
        return {"sparsity": 0.95, "nonzeros": 1000, "bytes": 2000, "CIDEr": np.pi}

    monkeypatch.setattr(demo, "train", lambda *_: None)
    monkeypatch.setattr(demo, "evaluate_run", evaluate)
    monkeypatch.setattr(demo, "training_curves", lambda *_: None)
    lines = []
    results = demo.run_demo({"dense": config, "supermask": config}, tmp_path / "out", lines.append)
    assert results == read_json(tmp_path / "out" / "results.json")
    assert set(results["dense"]["wrong"].values()) == {0}
    assert results["supermask"]["wrong"]["object"] == len(test)  # one of two groups is missing
    assert results["supermask"]["wrong"]["background"] == 0  # none is named
    scores, title, wrong = lines[2:5]
    assert scores.splitlines()[1].split() == ["dense", "0.950", "1,000", "2,000", "3.142"] + 4 * [
        "-"
    ]
    assert title == f"captions of {len(test)} that state a wrong fact:"
    assert wrong.splitlines()[0].split() == list(demo.FACTS)
    assert wrong.splitlines()[1].split() == ["dense", *("0" for _ in demo.FACTS)]
    assert (tmp_path / "out" / "captions.png").exists()
