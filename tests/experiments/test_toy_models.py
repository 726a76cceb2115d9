"""The sweep of all architectures: its runs and its table."""

from sparsecap_jax.config import validate
from sparsecap_jax.experiments.toy_models import COLUMNS, draw, toy_runs
from sparsecap_jax.models import MODELS


def test_every_architecture_takes_part():
    runs = toy_runs(2)
    assert len({run.name for run in runs}) == len(runs) == 2 * 8
    assert {run.config.model.name for run in runs} == set(MODELS)
    assert [run.config.seed for run in runs] == [0] * 8 + [1] * 8
    assert {run.name for run in runs if run.config.data.name == "toy_boxes"} == {
        f"{model}_boxes/seed_{seed}" for model in ("transformer", "ort") for seed in (0, 1)
    }
    for run in runs:
        validate(run.config)


def test_table_by_hand(tmp_path):
    row = dict.fromkeys(COLUMNS, 0.5) | {"scenes": "toy", "nonzeros": 1234567, "seconds": 71.4}
    rows = [
        {**row, "model": "ORT", "CIDEr": 4.0},
        {**row, "model": "ORT", "CIDEr": 5.0},
        {**row, "model": "ACORT", "CIDEr": 3.25},
    ]
    draw(tmp_path, rows)
    assert (tmp_path / "table.md").read_text().splitlines() == [
        "| scenes | model | prunable weights | CIDEr | BLEU-4 "
        "| relation right | axis right | seconds |",
        "|---|---|---|---|---|---|---|---|",
        "| toy | ORT | 1,234,567 | 4.500 ± 0.500 | 0.500 ± 0.000 | 0.500 ± 0.000 "
        "| 0.500 ± 0.000 | 71 |",
        "| toy | ACORT | 1,234,567 | 3.250 | 0.500 | 0.500 | 0.500 | 71 |",
    ]
