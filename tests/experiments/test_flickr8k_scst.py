"""The sweep of self-critical variants on photos: its runs, its tables, a dry run at tiny size."""

import dataclasses

import pytest
from test_flickr8k_pruners import shrunk
from tiny_runs import make_data

from sparsecap_jax.evaluation import judging
from sparsecap_jax.experiments.flickr8k_scst import (
    LOGGED,
    SWEEP,
    curves,
    score_table,
    step_table,
)
from sparsecap_jax.experiments.sweep_runner import run_sweep
from sparsecap_jax.experiments.sweeps import load_sweep
from sparsecap_jax.files import read_csv, write_table
from sparsecap_jax.runs.config import to_json, validate


def test_every_variant_follows_the_start_of_its_seed():
    runs = SWEEP.runs(2)
    assert len({run.name for run in runs}) == len(runs) == 2 * 2 * 5
    pruners = {run.name: run.config for run in load_sweep("flickr8k_pruners").runs(2)}
    same = {"dense": "up_down/dense", "sparse": "up_down/supermask/0.95"}
    for run in runs:
        validate(run.config)
        model, variant, seed = run.name.split("/")
        if variant == "start":
            assert to_json(run.config) == to_json(pruners[f"{same[model]}/{seed}"])
            assert run.init_from == run.twin == ""
            continue
        assert run.init_from == run.twin == f"{model}/start/{seed}"
        assert variant == f"{run.config.scst.sample}_{run.config.scst.baseline}"
        assert run.config.pruner.name == {"dense": "none", "sparse": "mask_freeze"}[model]
        assert run.config.scst.start_epoch == 0 and run.config.data.seq_per_img == 1
        assert run.config.train.steps == 8 * run.config.train.eval_every == 800


def test_curves_by_hand(tmp_path):
    logged = [{"step": n, **dict.fromkeys(LOGGED, 0.5), "reward": n / 10} for n in (2, 4, 6, 8)]
    write_table(tmp_path / "train.csv", logged)
    write_table(
        tmp_path / "validation.csv", [{"step": 4, "CIDEr": 0.25}, {"step": 8, "CIDEr": 0.5}]
    )
    row = curves(tmp_path)
    assert row["log_steps"] == "1 2 4 6 8"
    assert row["reward"] == "- 0.2 0.4 0.6 0.8"
    assert row["dev_curve"] == "- - 0.2500 - 0.5000"
    write_table(tmp_path / "train.csv", [{**one, "step": 4 * one["step"]} for one in logged])
    row = curves(tmp_path)  # steps 8, 16, 24, 32; the mean of two
    assert (row["log_steps"], row["reward"]) == ("4 8 16 24 32", "- 0.2 0.4 0.6 0.8")
    more = [*logged, {**logged[0], "step": 7, "reward": 1.0}]
    write_table(tmp_path / "train.csv", more)
    assert curves(tmp_path)["reward"] == "- 0.2 0.4 0.6 0.9"


def test_tables_by_hand():
    labels = {"model": "sparse", "variant": "beam, greedy"}
    texts = dict.fromkeys(LOGGED, "0.5 -") | {"log_steps": "100 200", "dev_curve": "- 0.45"}
    texts["reward"] = "0.25 1.5"
    numbers = {"Bleu_4": 0.2, "METEOR": None, "words": 9.5, "repetition": 0.125}
    rows = []
    for seed, (cider, gain) in enumerate([(0.5, 0.01), (0.6, -0.03)]):
        figures = {"CIDEr": cider, "difference": gain, "difference_low": gain - 0.005}
        dev = {f"dev_{name}": value / 2 for name, value in figures.items()}
        rows.append({**labels, "seed": seed, **figures, **dev, **numbers, **texts})
    rows[1]["reward"] = "0.75 2.5"
    start = {"model": "sparse", "variant": "cross-entropy", "seed": 0, "CIDEr": 0.49}
    assert score_table([*rows, start]).splitlines()[2:] == [
        "| sparse | cross-entropy | 1 |  |  |  | 49.0 |  |  |  |  |  |  |",
        "| sparse | beam, greedy | 2 | 27.5 ± 2.5 | -0.5 ± 1.0 | 1 of 2 | 55.0 ± 5.0 | -1.0 ± 2.0 "
        "| 1 of 2 | 20.0 ± 0.0 |  | 9.5 ± 0.0 | 12.5 ± 0.0 |",
    ]
    assert step_table([*rows, start]).splitlines()[2:] == [
        "| sparse | beam, greedy | 100 | 0.5 | 0.5 | 0.5 | 0.5 | 0.5 | 50 |  |",
        "| sparse | beam, greedy | 200 | 2 |  |  |  |  |  | 45 |",
    ]


def test_dry_run(tmp_path, monkeypatch):
    # METEOR, which starts Java for every split, is scored in the sweep of pruners.
    monkeypatch.setattr(judging, "java_available", lambda: False)
    data = make_data(tmp_path / "toy")

    def runs(seeds):
        tiny = [shrunk(run, data) for run in SWEEP.runs(seeds)]
        for run in tiny:
            if run.init_from:
                run.config.train.update(steps=8, eval_every=8)
                run.config.data.seq_per_img = 1
                run.config.scst.update(num_samples=2, length_buckets=1)
        return tiny

    sweep = dataclasses.replace(SWEEP, runs=runs)
    rows = run_sweep(
        sweep, tmp_path / "out", seeds=1, only="dense/(start|random_s)", report=lambda _: None
    )
    start, scst = rows
    assert (start["variant"], scst["variant"]) == ("cross-entropy", "random, sample mean")
    for split in ("dev_", ""):
        gain = scst[f"{split}CIDEr"] - start[f"{split}CIDEr"]
        assert scst[f"{split}difference"] == pytest.approx(gain, abs=1e-9)
    assert scst["log_steps"] == "1 2 4 6 8"
    assert scst["dev_curve"] == f"- - - - {scst['dev_CIDEr']:.4f}"
    logged = read_csv(tmp_path / "out/dense/random_sample/seed_0/train.csv")
    assert float(scst["reward"].split()[1]) == pytest.approx(float(logged[1]["reward"]), rel=1e-3)
    assert "| dense | random, sample mean | 8 |" in (tmp_path / "out/steps.md").read_text()
    assert "| dense | cross-entropy | 1 |" in (tmp_path / "out/table.md").read_text()
    # Trained, but not scored, as a run of another sweep: it is scored, not trained.
    (tmp_path / "out/dense/random_sample/seed_0/result.json").unlink()
    again = run_sweep(
        sweep,
        tmp_path / "out",
        seeds=1,
        only="dense/random_s",
        report=lambda _: None,
        data_dir=str(data),
    )
    assert {**again[1], "seconds": 0} == {**scst, "seconds": 0}
