"""Six optimisation steps of every architecture against the reference's trajectories.

The steps run in evaluation mode (no dropout, rounded masks), with the reference's clipping by
value, Adam groups and sparsity loss (current step i of 12).
"""

import dataclasses
import json

import jax
import numpy as np
import pytest
import reference_cases as cases
from flax.traverse_util import flatten_dict

from sparsecap_jax.pruning import PruneState, apply_masks, make_pruner
from sparsecap_jax.pruning.step import SparseStep
from sparsecap_jax.training.losses import caption_loss
from sparsecap_jax.training.optimizers import make_optimizer, make_schedule
from sparsecap_jax.types import Batch

UP_DOWN = ("up_down_lstm", "up_down_lstm_prune_supermask")
OTHERS = ("transformer", "relation_transformer", "relation_transformer_prune_supermask")
# The reference's own float64 deviations, see the README of its figures.
RTOL = {"relation_transformer_prune_supermask": 5e-2}


def optimizer_section(config):
    noam = config["lr_scheduler"] == "noam"
    return {
        "name": config["optim"],
        "schedule": config["lr_scheduler"],
        "learning_rate": config["learning_rate"],
        "learning_rate_min": config["learning_rate_min"],
        "alpha": config["optim_alpha"],
        "beta": None if noam else config["optim_beta"],
        "epsilon": None if noam else config["optim_epsilon"],
        "weight_decay": float(config["weight_decay"]),
        "clip_at": config["grad_clip"],
        "noam_factor": float(config["noamopt_factor"]),
        "noam_warmup": config["noamopt_warmup"],
        "noam_size": config["d_model"],
        "mask_learning_rate": config["prune_supermask_lr"],
    }


def pruner_of(case, config, masks):
    if not masks:
        return make_pruner({"name": "none"}, total_steps=12)
    section = {
        "name": cases.config_of(case)["prune_type"],
        "sparsity": config["prune_sparsity_target"],
        "sparsity_weight": config["prune_supermask_sparsity_weight"],
    }
    return make_pruner(section, total_steps=config["sparsity_max_step"])


def run_steps(case):
    """Six steps; returns losses before each step and after the last, penalties, and the end."""
    config = json.loads(str(case["train/config_json"]))
    model, variables = cases.load(case)
    pruner = pruner_of(case, config, variables["masks"])
    section = optimizer_section(config)
    total = config["max_train_step"]
    tx = make_optimizer(section, total, total, pruner.trains_masks)
    tokens, mask = cases.captions(case)
    batch = Batch(cases.regions(case), tokens, mask, np.arange(len(tokens), dtype=np.int32))

    def loss_fn(params, batch):
        return caption_loss(model.apply({"params": params}, batch.regions, batch.tokens), batch)

    def gradient(params, evaluated, batch, step, rng):
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        return loss, grads, {"caption_loss": loss}

    step = SparseStep(rounded(pruner), tx, gradient)
    prune = PruneState(variables["masks"], {})
    state = step.start(jax.random.key(0), prune, variables["params"])
    take = jax.jit(step)
    losses, penalties = [], []
    for _ in range(config["steps"]):
        state, metrics = take(state, batch)
        losses.append(float(metrics["caption_loss"]))
        penalties.append(float(metrics["sparsity_loss"]))
    params = apply_masks(state.params, pruner.binarize(state.prune.masks))
    losses.append(float(jax.jit(loss_fn)(params, batch)))
    rates = [float(make_schedule(section, total, total)(i)) for i in range(config["steps"])]
    trained = {"params": state.params}
    if pruner.trains_masks:
        trained["masks"] = state.prune.masks
    return losses, penalties, rates, trained


def rounded(pruner):
    """The same pruner with rounded masks in training, as in the figures."""
    methods = {"sample": lambda self, masks, rng=None: self.binarize(masks)}
    fields = {field.name: getattr(pruner, field.name) for field in dataclasses.fields(pruner)}
    return type("Rounded", (type(pruner),), methods)(**fields)


@pytest.mark.parametrize("name", UP_DOWN)
def test_up_down_follows_the_references_trajectory(golden, name):
    case = golden(f"arch/{name}.npz")
    losses, penalties, rates, trained = run_steps(case)
    np.testing.assert_allclose(losses, case["train/xe_loss"], rtol=1e-5)
    np.testing.assert_allclose(rates, case["train/lr"], rtol=1e-6)
    if case["train/sparsity_loss"].size:
        np.testing.assert_allclose(penalties, case["train/sparsity_loss"], rtol=1e-5, atol=1e-7)
    config, final = cases.config_of(case), cases.tensors(case, "train_final/")
    cases.assert_trees_close(trained["params"], cases.to_paths(final, config), 1e-4, 0)
    if "masks" in trained:
        expected = cases.to_paths(final, config, cases.MASK_SUFFIX)
        assert flatten_dict(expected).keys() == flatten_dict(trained["masks"]).keys()
        cases.assert_trees_close(trained["masks"], expected, 1e-2, 0)


@pytest.mark.parametrize("name", OTHERS)
def test_transformers_follow_the_references_trajectories(golden, name):
    case = golden(f"arch/{name}.npz")
    losses, penalties, rates, _ = run_steps(case)
    rtol = RTOL.get(name, 1e-3)
    np.testing.assert_allclose(losses, case["train/xe_loss"], rtol=rtol)
    np.testing.assert_allclose(rates, case["train/lr"], rtol=1e-6)
    if case["train/sparsity_loss"].size:
        np.testing.assert_allclose(penalties, case["train/sparsity_loss"], rtol=rtol, atol=1e-6)
