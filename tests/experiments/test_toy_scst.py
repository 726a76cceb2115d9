"""The sweep of self-critical variants: its runs and its table."""

from sparsecap_jax.experiments.toy_scst import cider_table, toy_runs
from sparsecap_jax.runs.config import validate


def test_every_variant_follows_the_start_of_its_seed():
    runs = toy_runs(2)
    assert len(runs) == 2 * 2 * 5
    rewarded = [run for run in runs if run.init_from]
    kinds = {(run.config.scst.sample, run.config.scst.baseline) for run in rewarded}
    assert kinds == {(s, b) for s in ("random", "beam") for b in ("sample", "greedy")}
    for run in runs:
        validate(run.config)
    for run in rewarded:
        model, variant, seed = run.name.split("/")
        assert run.init_from == f"{model}/start/{seed}"
        assert variant == f"{run.config.scst.sample}_{run.config.scst.baseline}"
        assert run.config.pruner.name == {"dense": "none", "sparse": "mask_freeze"}[model]
        steps = {"random_sample": (450, 900), "random_greedy": (1200, 2400)}
        assert run.config.train.steps == steps.get(variant, (300, 300))[model == "sparse"]
        assert run.config.train.steps % run.config.train.eval_every == 0


def test_table_by_hand():
    scores = {
        ("dense", "cross-entropy"): (1.0, 2.0),
        ("dense", "beam, greedy"): (1.5, 2.25),
        ("sparse", "cross-entropy"): (0.5, None),
        ("sparse", "random, greedy"): (0.375, None),
    }
    rows = [
        {"model": model, "variant": variant, "seed": seed, "CIDEr": score}
        for (model, variant), pair in scores.items()
        for seed, score in enumerate(pair)
        if score is not None
    ]
    lines = cider_table(rows).splitlines()
    assert lines[0] == "| model | training | seed 0 | seed 1 | least gain |"
    assert "| dense | cross-entropy | 1.000 | 2.000 |  |" in lines
    assert "| dense | beam, greedy | 1.500 | 2.250 | +0.250 |" in lines
    assert "| sparse | random, greedy | 0.375 |  | -0.125 |" in lines
    assert len(lines) == 2 + 2 * 5
