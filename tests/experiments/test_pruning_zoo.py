"""The sweep of pruning methods: its runs, its training at tiny size, its table."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from sparsecap_jax.experiments import pruning_zoo, zoo_models, zoo_training
from sparsecap_jax.experiments.pruning_zoo import SPARSITIES, family, methods, zoo_runs
from sparsecap_jax.experiments.sweep_runner import run_sweep
from sparsecap_jax.experiments.sweep_tables import read_rows
from sparsecap_jax.pruning import PRUNERS, sparse_step

RESULTS = pathlib.Path(__file__).parents[2] / "docs" / "results"
TEXT = "the cat sat on the mat and the dog sat on the log. " * 12


@pytest.fixture
def tiny(monkeypatch):
    """Both models on little data, a few steps."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 17, (60, 64)) * 1.0, np.arange(60) % 10
    made = {
        "digits": zoo_models.digits(images, labels),
        "characters": zoo_models.characters(TEXT, length=8, width=8),
    }
    monkeypatch.setattr(zoo_models, "load_problem", made.__getitem__)
    monkeypatch.setattr(pruning_zoo, "STEPS", {"digits": 4, "characters": 4})
    return made


def test_all_methods_meet_all_sparsities():
    runs = zoo_runs(5)
    assert len({run.name for run in runs}) == len(runs)
    assert SPARSITIES == (0.5, 0.8, 0.9, 0.95, 0.98)
    needs = {"mask_freeze", "lottery_mask_freeze"}  # masks that other methods find
    assert {*PRUNERS} - needs - {"none"} < {*methods()}
    for model in ("digits", "characters"):
        found = [
            (r.labels["method"], r.labels["target"]) for r in runs if r.labels["model"] == model
        ]
        assert found[0] == ("dense", 0.0) and ("magnitude_2:4", 0.5) in found
        assert len(found) == 2 + 5 * (len(methods()) - 1)
    assert family("mag_blind") == "of a trained model" and family("mag_grad_dist") == "gradual"
    assert family("magnitude_ste") == "sparse training" and family("supermask").startswith(
        "trained"
    )


def test_a_dry_run_trains_tables_and_draws(tiny, tmp_path):
    chosen = "^(digits/(dense|magnitude)/|characters/layers_wanda/0.5)"
    lines = []
    rows = run_sweep(pruning_zoo.SWEEP, tmp_path, seeds=2, only=chosen, report=lines.append)
    assert [(row["model"], row["method"], row["target"]) for row in rows] == [
        ("digits", "dense", 0.0),
        *(("digits", "magnitude", target) for target in SPARSITIES),
        ("characters", "layers_wanda", 0.5),
    ]
    assert lines[0].endswith(f"digits/dense/0.0: score {rows[0]['score']:.3f}")
    for row in rows:
        assert row["sparsity"] == pytest.approx(row["target"], abs=0.01)
        seeds = [float(score) for score in row["scores"].split()]
        assert row["score"] == pytest.approx(np.mean(seeds), abs=1e-3) and len(seeds) == 2
    before = (tmp_path / "results.csv").read_bytes()
    again = run_sweep(pruning_zoo.SWEEP, tmp_path, seeds=2, only=chosen, report=lines.append)
    assert again == rows and (tmp_path / "results.csv").read_bytes() == before
    assert "| digits | magnitude |" in (tmp_path / "table.md").read_text()
    with Image.open(tmp_path / "score.png") as picture:
        assert picture.width > 1000


# Adam moves all weights that grew at an event equally far at first: events in consecutive steps
# would rank them by rounding errors.
@pytest.mark.parametrize(
    "settings", [{"name": "rigl", "frequency": 2, "events": 2}, "supermask", "snip"], ids=str
)
def test_chosen_by_index_means_trained_alone(tiny, settings):
    """One program for all sparsities and seeds gives what a plain loop over steps gives."""
    problem, steps = tiny["digits"], 6
    settings = {"name": settings} if isinstance(settings, str) else settings
    pruners = zoo_training.make_pruners(problem, settings, SPARSITIES, steps)
    program = zoo_training.make_program(problem, pruners, steps)
    first = zoo_training.initial_params(problem, 2)
    params, _, reached = program(jnp.int32(1), jnp.arange(2), first, first)

    tx = zoo_training.optimizer(problem, steps)
    step = sparse_step(pruners[1], tx, problem.loss)
    keys = jax.random.split(jax.random.key(1), 1 + pruners[1].batches_needed)
    start = jax.tree.map(lambda leaf: leaf[1], first)
    state = step.init(keys[0], start, batches=[problem.batch(key) for key in keys[1:]])
    for number in range(steps):
        key = jax.random.fold_in(jax.random.key(1001), number)
        state, _ = jax.jit(step)(state, problem.batch(key))
    alone, masks = step.finish(state)
    for path, leaf in jax.tree_util.tree_leaves_with_path(alone):
        both = params
        for entry in path:
            both = both[entry.key]
        np.testing.assert_array_equal(both[1] != 0, leaf != 0)
        np.testing.assert_allclose(both[1], leaf, atol=1e-5)
    zeros = sum(int((mask == 0).sum()) for mask in jax.tree.leaves(masks))
    size = sum(mask.size for mask in jax.tree.leaves(masks))
    assert float(reached[1]) == pytest.approx(zeros / size, abs=1e-6)


def test_data_by_hand():
    problem = zoo_models.characters("abcab" * 20, length=4, width=8)
    inputs, targets = problem.train
    assert inputs.shape[1] == 4 and inputs[0].tolist() == [0, 1, 2, 0]
    assert targets[0].tolist() == [1, 2, 0, 1]
    digits = zoo_models.digits(np.full((10, 64), 16.0), np.arange(10))
    assert digits.train[0].shape == (8, 64) and digits.test[0].shape == (2, 64)
    assert digits.train[0].max() == 1 and {*digits.train[1], *digits.test[1]} == {*range(10)}


def test_the_transformer_sees_no_later_character():
    problem = zoo_models.characters(TEXT, length=8, width=8)
    params = problem.init(jax.random.key(0))
    inputs = jnp.asarray(problem.train[0][:1])
    changed = inputs.at[0, 5].set((inputs[0, 5] + 1) % problem.model.vocabulary)
    before, after = problem.apply(params, inputs), problem.apply(params, changed)
    np.testing.assert_allclose(before[0, :5], after[0, :5], atol=1e-6)
    assert not np.allclose(before[0, 5], after[0, 5])


def test_the_committed_table_is_that_of_the_committed_rows():
    labels = {run.name: run.labels for run in zoo_runs(5)}
    rows, _ = read_rows(RESULTS / "pruning_zoo.csv", labels, "score")
    text = (RESULTS / "pruning_zoo.md").read_text(encoding="utf-8")
    ordered = [rows[name] for name in labels if name in rows]
    assert pruning_zoo.table(ordered) in text
