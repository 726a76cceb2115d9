"""The sweep of pruning methods: its runs."""

import pytest

from sparsecap_jax.experiments.toy_pruners import METHODS, SPARSITIES, toy_runs
from sparsecap_jax.runs.config import validate


def test_all_methods_meet_all_sparsities():
    runs = toy_runs(2)
    assert len({run.name for run in runs}) == len(runs) == 2 * 2 * (1 + len(METHODS) * 5)
    assert SPARSITIES == (0.8, 0.9, 0.95, 0.975, 0.99)
    for run in runs:
        validate(run.config)
        assert run.labels["target"] == (run.config.pruner.get("sparsity") or 0.0)
        # One-shot magnitude prunes the dense model of its seed, all others start from scratch.
        one_shot = run.config.pruner.name == "mag_blind"
        dense = f"{run.labels['model']}/dense/seed_{run.config.seed}"
        assert run.init_from == (dense if one_shot else "")


@pytest.mark.parametrize(
    ("run", "weight"),
    [
        ("up_down/supermask/0.8/seed_0", 7.5),
        ("up_down/supermask/0.99/seed_0", 150.0),
        ("ort/supermask/0.9/seed_0", 20.0),
        ("ort/supermask/0.975/seed_0", 80.0),
    ],
)
def test_the_sparsity_loss_by_hand(run, weight):
    config = next(r.config for r in toy_runs(1) if r.name == run)
    assert config.pruner.sparsity_weight == pytest.approx(weight)
    assert config.optimizer.mask_epsilon == 1e-3
