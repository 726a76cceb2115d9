"""Runs whose optimizer keeps state of the kept weights alone."""

import contextlib

import jax
import numpy as np
import pytest
from tiny_runs import constant_config, make_data

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.runs.checkpoints import Checkpoints
from sparsecap_jax.runs.directory import load_run
from sparsecap_jax.runs.first_state import abstract_state
from sparsecap_jax.runs.loop import train
from sparsecap_jax.runs.run import prepare_run
from sparsecap_jax.runs.weights import load_weights


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("scenes") / "toy")


@pytest.fixture(scope="module")
def source(data, tmp_path_factory):
    """A pruned run of 4 steps, trained packed."""
    workdir = tmp_path_factory.mktemp("run") / "source"
    train(
        constant_config(data, "static_sparse", steps=4, packed_optimizer=True), workdir, [].append
    )
    return workdir


def last_state(config, workdir):
    """The last checkpoint, as continuing restores it."""
    with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        masks = checkpoints.restore_variables(checkpoints.last_step())["masks"]
        run = prepare_run(config, workdir, report=[].append)
        return checkpoints.restore(abstract_state(run, masks))[0]


@pytest.mark.usefixtures("default_emitters")
def test_training_is_the_same_and_continues_exactly(data, source, tmp_path):
    finished = {}
    for name, packs in (("dense", False), ("packed", True)):
        fields = {"init_from": str(source), "packed_optimizer": packs}
        train(constant_config(data, "mask_freeze", steps=8, **fields), tmp_path / name, [].append)
        finished[name] = load_weights(tmp_path / name / "model.scap")
    jax.tree.map(np.testing.assert_array_equal, finished["packed"], finished["dense"])
    start = load_run(source)
    assert any(
        (new != old).any()
        for new, old in zip(
            jax.tree.leaves(finished["packed"]["params"]),
            jax.tree.leaves(start.params),
            strict=True,
        )
    )
    config = constant_config(data, "mask_freeze", steps=4, **fields)
    train(config, tmp_path / "parts", [].append)
    config.train.steps, lines = 8, []
    train(config, tmp_path / "parts", lines.append)
    assert lines[0].startswith("continuing from step 4 of ")
    states = [last_state(config, tmp_path / name) for name in ("packed", "parts")]
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(*map(jax.device_get, (a, b))),
        *(state.replace(rng=jax.random.key_data(state.rng)) for state in states),
    )
    kept = sum(int(np.count_nonzero(mask)) for mask in jax.tree.leaves(states[0].prune.masks))
    total = sum(leaf.size for leaf in jax.tree.leaves(states[0].params))
    masked = sum(mask.size for mask in jax.tree.leaves(states[0].prune.masks))
    # Two moments of what is kept or has no mask, a place of each kept weight, two counters.
    found = sum(leaf.size for leaf in jax.tree.leaves(states[0].opt_state))
    assert found == 2 * (total - masked + kept) + kept + 2


@pytest.mark.parametrize("pruner", ["supermask", "mag_grad_blind", "rigl", "none"])
def test_masks_that_change_are_refused_before_anything_is_written(data, tmp_path, pruner):
    with pytest.raises(ConfigError, match=r"config\.train\.packed_optimizer is True, but pruner '"):
        train(constant_config(data, pruner, packed_optimizer=True), tmp_path / "run", [].append)
    assert not (tmp_path / "run").exists()


def test_the_setting_stays_with_a_run(data, source):
    config = constant_config(data, "static_sparse", steps=4)
    with pytest.raises(ConfigError, match=r"train\.packed_optimizer was True, is False"):
        train(config, source, [].append)
