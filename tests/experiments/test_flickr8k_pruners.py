"""The sweep of pruning methods on photos: its runs, its table, and a dry run at tiny size."""

import dataclasses

import pytest
from PIL import Image
from tiny_runs import make_data, tiny_config

from sparsecap_jax.experiments.flickr8k_pruners import METHODS, STEPS, SWEEP, published, table
from sparsecap_jax.experiments.sweep_runner import run_sweep
from sparsecap_jax.files import read_csv, read_json
from sparsecap_jax.pruning import make_pruner
from sparsecap_jax.runs.config import make_section, validate

EPOCH = 760  # steps: 12,147 photos in batches of 16
TINY = {
    "up_down": {"embed_size": 12, "rnn_size": 16, "attention_size": 10},
    "relation_transformer": {"d_model": 16, "ff_size": 16, "num_layers": 1, "num_heads": 2},
}


def test_the_most_telling_runs_come_first():
    names = [run.name for run in SWEEP.runs(2)]
    assert len({*names}) == len(names) == 2 * (2 + 6 * 5 + 2 + 6 * 2)
    assert names[:2] == ["up_down/dense/seed_0", "up_down/half/seed_0"]
    assert names[2:8] == [f"up_down/{method}/0.95/seed_0" for method in METHODS]
    targets = [name.split("/")[2] for name in names[2:32]]
    assert targets[::6] == ["0.95", "0.975", "0.9", "0.8", "0.99"]
    assert names[32:35] == ["ort/dense/seed_0", "ort/half/seed_0", "ort/supermask/0.95/seed_0"]
    assert names[46] == "up_down/dense/seed_1"


def test_every_method_takes_as_many_steps_and_is_compared_with_its_dense_twin():
    runs = {run.name: run for run in SWEEP.runs(2)}
    for name, run in runs.items():
        validate(run.config)
        model, method, seed = name.split("/")[0], run.labels["method"], run.config.seed
        before = runs[run.init_from].config.train.steps if run.init_from else 0
        assert run.labels["steps"] == run.config.train.steps + before
        assert run.labels["steps"] == (STEPS // 2 if method == "half" else STEPS)
        starts = method in ("mag_blind", "mag_uniform", "lottery_mag_blind")
        assert run.init_from == (f"{model}/half/seed_{seed}" if starts else "")
        assert run.twin == ("" if method == "dense" else f"{model}/dense/seed_{seed}")
        assert run.config.pruner.get("sparsity", 0.0) == run.labels["target"]
        kind = {"up_down": "up_down", "ort": "relation_transformer"}[model]
        assert run.config.model.compute_dtype == "bfloat16"
        assert run.config.model.name == kind and run.config.data.name == "imagined"


def test_gradual_pruning_ends_at_half_of_training():
    (run,) = [run for run in SWEEP.runs(1) if run.name == "up_down/mag_grad_uniform/0.95/seed_0"]
    schedule = make_pruner(run.config.pruner, STEPS, EPOCH).schedule
    assert schedule.start == EPOCH and STEPS / 2 - 20 <= schedule.end <= STEPS / 2


def test_table_by_hand():
    row = {"model": "up_down", "Bleu_4": 0.2, "METEOR": None, "difference_high": None}
    dense = [{**row, "method": "dense", "target": 0.0, "CIDEr": 0.5 + 0.1 * n} for n in (0, 1)]
    sparse = [
        {**row, "method": "snip", "target": 0.95, "CIDEr": c, "difference": d, "difference_high": h}
        for c, d, h in ((0.41, -0.09, -0.01), (0.57, -0.03, 0.02))
    ]
    assert table([*sparse, *dense]).splitlines() == [
        "| model | sparsity | method | seeds | CIDEr x 100 | BLEU-4 | METEOR "
        "| minus dense | below |",
        "|---|---|---|---|---|---|---|---|---|",
        "| up_down | 0 | dense | 2 | 55.0 ± 5.0 | 20.0 ± 0.0 |  |  |  |",
        "| up_down | 0.95 | snip | 2 | 49.0 ± 8.0 | 20.0 ± 0.0 |  | -6.0 ± 3.0 | 1 of 2 |",
    ]


def shrunk(run, data):
    """A run with its pruner, in a thousandth of its steps of a tiny model on toy scenes."""
    config = run.config.copy_and_resolve_references()
    steps = config.train.steps // 1000
    with config.unlocked():
        config.data = tiny_config(data).data
        config.model = make_section("model", config.model.name, **TINY[config.model.name])
    config.train.update(steps=steps, eval_every=max(1, steps // 4), devices=1, log_every=1)
    config.train.steps_per_call = 1
    config.tokenizer.vocab_size = 300
    return dataclasses.replace(run, config=config)


def test_dry_run(tmp_path):
    data = make_data(tmp_path / "toy")
    runs = lambda seeds: [shrunk(run, data) for run in SWEEP.runs(seeds)]  # noqa: E731
    sweep = dataclasses.replace(SWEEP, runs=runs)
    only, options = "up_down/(dense|half|lottery_.*/0.95)", {"seeds": 1}
    rows = run_sweep(sweep, tmp_path / "out", only=only, report=lambda _: None, **options)
    methods = ["dense", "half", "lottery_mag_blind"]
    assert [row["method"] for row in rows] == methods
    written = read_csv(tmp_path / "out/results.csv")
    assert list(written[0])[:6] == ["model", "method", "target", "seed", "steps", "CIDEr"]
    assert [float(cells["CIDEr"]) for cells in written] == [row["CIDEr"] for row in rows]
    # Four validations in 4 steps; two in 2.
    assert [len(row["dev_curve"].split()) for row in rows] == [4, 2, 2]
    assert rows[0]["difference"] is None and rows[2]["sparsity"] == pytest.approx(0.95, abs=1e-3)
    for row in rows[1:]:
        assert row["difference"] == pytest.approx(row["CIDEr"] - rows[0]["CIDEr"], abs=1e-9)
        assert row["difference_low"] <= row["difference"] <= row["difference_high"]
    ticket = read_json(tmp_path / "out/up_down/lottery_mag_blind/0.95/seed_0/config.json")
    assert ticket["train"]["init_from"] == str(tmp_path / "out/up_down/half/seed_0")
    with Image.open(tmp_path / "out/cider.png") as picture:
        assert picture.width > 1200  # two panels
    assert "| up_down | 0.95 | lottery_mag_blind | 1 |" in (tmp_path / "out/table.md").read_text()
    table = tmp_path / "out/results.csv"
    again = run_sweep(
        sweep, tmp_path / "b", only=only, known=table, report=lambda _: None, **options
    )
    assert [row["CIDEr"] for row in again] == [row["CIDEr"] for row in rows]
    assert not (tmp_path / "b/up_down").exists()


def test_the_papers_curves_by_our_names():
    """Read off the tables of arXiv 2110.03298."""
    rows = {(row["model"], row["method"], row["target"]): row["CIDEr"] for row in published()}
    up_down, ort = "Up-Down on COCO, published", "ORT on COCO, published"
    assert rows[up_down, "dense", 0.0] == pytest.approx(1.113)
    assert rows[up_down, "supermask", 0.95] == pytest.approx(1.125)
    assert rows[up_down, "mag_grad_uniform", 0.975] == pytest.approx(1.07)
    assert rows[ort, "mag_blind", 0.95] == pytest.approx(0.041)
    assert rows[ort, "snip", 0.988] == pytest.approx(0.373)
    assert {method for _, method, _ in rows} == {"dense", *METHODS} - {"lottery_mag_blind"}
