"""The sweep of all architectures: its runs and its table."""

from sparsecap_jax.experiments.toy_models import COLUMNS, draw, toy_runs
from sparsecap_jax.models import MODELS
from sparsecap_jax.runs.config import validate


def test_every_architecture_takes_part():
    runs = toy_runs(2)
    assert len({run.name for run in runs}) == len(runs) == 2 * 11
    assert {run.config.model.name for run in runs} == set(MODELS)
    assert [run.config.seed for run in runs] == [0] * 11 + [1] * 11
    assert {run.name for run in runs if run.config.data.name == "toy_boxes"} == {
        f"{model}_boxes/seed_{seed}" for model in ("transformer", "ort") for seed in (0, 1)
    }
    near = [run for run in runs if run.config.data.name == "toy_near"][:3]
    assert [run.name for run in near] == [
        *("transformer_near/seed_0", "ort_near/seed_0", "ort_plain_geometry_near/seed_0")
    ]
    assert {(run.config.train.steps, run.config.data.seq_per_img) for run in near} == {(3000, 1)}
    assert [run.config.model.get("box_embedding") for run in near] == [None, "trig", "plain"]
    for run in runs:
        validate(run.config)


def test_table_by_hand(tmp_path):
    row = dict.fromkeys(COLUMNS, 0.5) | {"scenes": "toy", "nonzeros": 1234567, "seconds": 71.4}
    del row["nearest_accuracy"]
    rows = [
        {**row, "model": "ORT", "CIDEr": 4.0},
        {**row, "model": "ORT", "CIDEr": 5.0},
        {**row, "model": "ACORT", "CIDEr": 3.25},
    ]
    draw(tmp_path, rows)
    assert (tmp_path / "table.md").read_text().splitlines() == [
        "| scenes | model | prunable weights | CIDEr | BLEU-4 "
        "| relation right | axis right | nearest right | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
        "| toy | ORT | 1,234,567 | 4.500 ± 0.500 | 0.500 ± 0.000 | 0.500 ± 0.000 "
        "| 0.500 ± 0.000 |  | 71 |",
        "| toy | ACORT | 1,234,567 | 3.250 | 0.500 | 0.500 | 0.500 |  | 71 |",
    ]
