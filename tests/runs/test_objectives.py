"""An objective from outside of the package trains through the same loop: docs/examples."""

import csv
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import constant_config, make_data, tiny_config

import sparsecap_jax as sc
from sparsecap_jax.errors import CheckpointError, ConfigError
from sparsecap_jax.runs.config import objective_section
from sparsecap_jax.training.losses import caption_loss
from sparsecap_jax.training.objectives import OBJECTIVES
from sparsecap_jax.types import Batch, Regions

EXAMPLES = pathlib.Path(__file__).parents[2] / "docs" / "examples"
NAME = "distillation:Distillation"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    config = constant_config(make_data(folder / "data"), steps=2)
    sc.train(config, folder / "run", lambda line: None)
    return folder


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    sc.use_plugin("distillation")


def distilling(folder, **fields):
    config = tiny_config(folder / "data", steps=4, steps_per_call=2)
    with config.unlocked():
        settings = {"teacher": str(folder / "run"), **fields}
        config.objective = objective_section(NAME, **settings)
    return config


def test_distillation_trains_through_the_loop_and_loads_again(teacher, example, tmp_path):
    sc.train(distilling(teacher), tmp_path / "run", lambda line: None)
    with (tmp_path / "run/train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "4"]
    for row in rows:  # weight 0.5 of each, and the supermask's penalty
        parts = 0.5 * float(row["caption_loss"]) + 0.5 * float(row["divergence"])
        np.testing.assert_allclose(
            float(row["loss"]), parts + float(row["sparsity_loss"]), rtol=1e-5
        )
        assert float(row["divergence"]) > 0
    assert sc.load_run(tmp_path / "run").config.objective.name == NAME


def test_the_divergence_of_a_model_from_itself_is_zero(teacher, example):
    """And with weight 0 the loss is the cross-entropy."""
    import distillation

    run = sc.load_run(teacher / "run")
    size = run.model.feature_size
    regions = Regions(
        jnp.ones((2, 3, size)), jnp.ones((2, 3), bool), jnp.zeros((2, 3, 4)), jnp.ones((2, size))
    )
    tokens = jnp.asarray(np.random.default_rng(0).integers(4, 9, (2, 2, 6)), jnp.int32)
    batch = Batch(regions, tokens, jnp.ones((2, 2, 6), bool), jnp.arange(2, dtype=jnp.int32))
    model = run.model.clone(dropout=0.0)
    objective = distillation.Distillation(
        task=sc.Task(model), teacher=str(teacher / "run"), weight=0.0
    )
    step, rng = jnp.int32(0), jax.random.key(0)
    loss, metrics = objective.loss(run.params, batch, step, rng, None, objective.resources)
    expected = caption_loss(model.apply({"params": run.params}, regions, tokens), batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["divergence"], 0.0, atol=1e-5)


class Cached(sc.Objective):
    """Cross-entropy; its resources are made by JAX and kept."""

    @functools.cached_property
    def resources(self):
        return {"one": jnp.ones(3) * 2.0 - 1.0}

    def loss(self, params, inputs, step, rng, static, resources):
        batch = inputs
        log_probs = self.task.model.apply({"params": params}, batch.regions, batch.tokens)
        loss = caption_loss(log_probs, batch) * resources["one"][0]
        return loss, {"caption_loss": loss}


class Stop(Exception):
    """Ends a run."""


def test_a_run_with_resources_made_by_jax_resumes(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(OBJECTIVES, "_entries", dict(OBJECTIVES))
    sc.register("objective", "cached", Cached)
    config = tiny_config(teacher / "data", pruner="none", steps=4, eval_every=2)
    with config.unlocked():
        config.objective = objective_section("cached")

    def stop(line):
        if line.startswith("step 2/4 | validation"):
            raise Stop

    with pytest.raises(Stop):
        sc.train(config, tmp_path / "run", stop)
    lines = []
    assert sc.train(config, tmp_path / "run", lines.append)["step"] == 4
    assert lines[0].startswith("continuing from step 2 ")


def test_faults_found_by_the_objective_leave_no_directory(teacher, example, tmp_path):
    with pytest.raises(CheckpointError, match=r"no run directory: config\.json is missing"):
        sc.train(distilling(teacher, teacher=str(tmp_path)), tmp_path / "run", lambda line: None)
    assert not (tmp_path / "run").exists()
    config = distilling(teacher)
    with config.unlocked(), config.objective.ignore_type():
        config.objective.weight = 2.0
    with pytest.raises(ConfigError, match=r"config\.objective\.weight is 2\.0; expected"):
        sc.train(config, tmp_path / "run", lambda line: None)
    assert not (tmp_path / "run").exists()


def test_settings_are_checked_where_they_are_given(teacher, example):
    with pytest.raises(
        ConfigError, match=r"objective\.weight is 2\.0?; expected at least 0 and at"
    ):
        distilling(teacher, weight=2.0)
    with pytest.raises(ConfigError, match=r"objective\.wieght: unknown key; did you mean 'weight'"):
        distilling(teacher, wieght=0.1)
