import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.training.optimizers import make_optimizer, make_schedule

NAMES = [
    "noam_adam_mask_group",
    "cosine_adam_mask_group",
    "step_adam_wd",
    "step_sgd",
    "step_sgdm",
    "step_sgdmom",
    "step_rmsprop",
    "step_adagrad",
]


@pytest.fixture
def figures(shared):
    def load(name):
        return json.loads((shared / "reference/losses_pruning" / name).read_text())

    return load


def ours(config):
    """Section `optimizer` for a config of the reference."""
    fields = {
        "name": config["optim"],
        "schedule": config["lr_scheduler"],
        "alpha": config["optim_alpha"],
        "weight_decay": config["weight_decay"],
        "decay_start": config["learning_rate_decay_start"],
        "decay_every": config["learning_rate_decay_every"],
        "decay_rate": config["learning_rate_decay_rate"],
    }
    if config["lr_scheduler"] == "noam":  # sets beta 2 and epsilon itself
        fields["noam_size"] = config["d_model"]
        fields["noam_factor"] = config["noamopt_factor"]
        fields["noam_warmup"] = config["noamopt_warmup"]
    else:
        fields["beta"], fields["epsilon"] = config["optim_beta"], config["optim_epsilon"]
        fields["learning_rate"] = config["learning_rate"]
        fields["learning_rate_min"] = config.get("learning_rate_min", 0.0)
    return fields


@pytest.mark.parametrize("name", NAMES)
def test_trajectories_equal_the_reference(golden, figures, name):
    case = golden("losses_pruning/optimizers.npz")
    (entry,) = [e for e in figures("optimizers.json") if e["name"] == name]
    config = ours(entry["config"])
    trains_masks = entry["two_groups"]
    tx = make_optimizer(config, 15, 5, trains_masks)
    rate = make_schedule(config, 15, 5)
    tree = {"params": {"w": jnp.asarray(case[f"{name}/w0"])}}
    if trains_masks:
        tree["masks"] = {"w": jnp.full((6, 4), 5.0, jnp.float32)}
    state = tx.init(tree)

    @jax.jit
    def step(tree, state, grads):
        updates, state = tx.update(grads, state, tree)
        return optax.apply_updates(tree, updates), state

    for i in range(15):
        grads = {"params": {"w": jnp.asarray(case[f"{name}/grads_w"][i])}}
        if trains_masks:
            grads["masks"] = {"w": jnp.asarray(case[f"{name}/grads_mask"][i])}
        np.testing.assert_allclose(rate(i), entry["lr_per_step"][i][0], rtol=1e-6)
        tree, state = step(tree, state, grads)
        np.testing.assert_allclose(tree["params"]["w"], case[f"{name}/w"][i], atol=1e-5)
        if trains_masks:
            np.testing.assert_allclose(tree["masks"]["w"], case[f"{name}/mask"][i], atol=1e-2)
    assert step._cache_size() == 1, "the step was compiled anew"
    moved = np.abs(case[f"{name}/w"][-1] - case[f"{name}/w0"]).max()
    assert moved > 100 * 1e-5, "the tolerance must be far below what the weights move by"


def test_noam_schedule(figures):
    for entry in figures("schedulers.json")["noam"]:
        config = {
            "schedule": "noam",
            "noam_size": entry["d_model"],
            "noam_factor": entry["factor"],
            "noam_warmup": entry["warmup"],
        }
        rate = make_schedule(config, 1000)
        for count, value, *_ in entry["step_rate_lr"] + entry["far"]:
            np.testing.assert_allclose(rate(count - 1), value, rtol=1e-6)


def test_cosine_schedule(figures):
    for entry in figures("schedulers.json")["cosine"]:
        config = {key: entry[key] for key in ("learning_rate", "learning_rate_min")}
        rate = make_schedule({"schedule": "cosine", **config}, entry["max_train_step"])
        for count, value in entry["step_rate"] + entry["far"]:
            np.testing.assert_allclose(rate(count - 1), value, rtol=1e-6)


def test_step_schedule(figures):
    for entry in figures("schedulers.json")["step"]:
        fields = ("decay_start", "decay_every", "decay_rate", "learning_rate")
        config = {"schedule": "step", **{key: entry[key] for key in fields}}
        epochs = len(entry["epoch_rate"])
        rate = make_schedule(config, 7 * epochs, 7)
        for epoch, value in entry["epoch_rate"]:
            for step in (7 * epoch, 7 * epoch + 6):  # first and last step of the epoch
                np.testing.assert_allclose(rate(step), value, rtol=1e-6)
        assert float(rate(1000 * epochs)) > 0


def test_constant_schedule_and_types():
    for schedule in ("constant", "cosine", "step", "noam"):
        rate = jax.jit(make_schedule({"schedule": schedule, "learning_rate": 0.5}, 10, 5))
        value = rate(jnp.int32(0))
        assert value.dtype == jnp.float32
        assert not value.weak_type
    assert float(make_schedule({"schedule": "constant", "learning_rate": 0.5}, 10)(9)) == 0.5


def apply(config, grads, params, steps=1, trains_masks=False):
    tx = make_optimizer({"schedule": "constant", **config}, 10, None, trains_masks)
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def test_clipping():
    grads = {"params": {"a": jnp.array([3.0, -0.05]), "b": jnp.array([4.0])}}
    params = jax.tree.map(jnp.zeros_like, grads)
    sgd = {"name": "sgd", "learning_rate": 1.0, "clip_at": 0.1}
    by_value, _ = apply({**sgd, "clip": "value"}, grads, params)
    np.testing.assert_allclose(by_value["params"]["a"], [-0.1, 0.05])
    by_norm, _ = apply({**sgd, "clip": "norm"}, grads, params)
    norm = np.sqrt(9 + 0.0025 + 16)
    np.testing.assert_allclose(by_norm["params"]["a"], [-0.3 / norm, 0.005 / norm], rtol=1e-6)
    np.testing.assert_allclose(by_norm["params"]["b"], [-0.4 / norm], rtol=1e-6)
    free, _ = apply({**sgd, "clip": "none"}, grads, params)
    np.testing.assert_array_equal(free["params"]["b"], [-4.0])


def test_adamw_decays_apart_from_the_gradient():
    params = {"params": {"w": jnp.array([2.0], jnp.float32)}}
    grads = {"params": {"w": jnp.array([0.05], jnp.float32)}}
    config = {"learning_rate": 0.1, "weight_decay": 0.5, "epsilon": 1e-8}
    decoupled, _ = apply({"name": "adamw", **config}, grads, params)
    np.testing.assert_allclose(decoupled["params"]["w"], [2.0 - 0.1 * (1.0 + 0.5 * 2.0)], rtol=1e-5)
    coupled, _ = apply({"name": "adam", **config}, grads, params)
    np.testing.assert_allclose(coupled["params"]["w"], [2.0 - 0.1], rtol=1e-5)


def test_masks_have_a_group_of_their_own():
    """By hand: Adam at rate 100, epsilon 1e-2, no decay, whatever moves the weights."""
    tree = {"params": {"w": jnp.ones(1, jnp.float32)}, "masks": {"w": jnp.full(2, 5.0)}}
    grads = {"params": {"w": jnp.zeros(1)}, "masks": {"w": jnp.array([0.001, 3.0])}}
    config = {"name": "sgd", "learning_rate": 0.1, "weight_decay": 0.5}
    tree, state = apply(config, grads, tree, trains_masks=True)
    np.testing.assert_allclose(tree["params"]["w"], [0.95], rtol=1e-6)
    steps = [100 * g / (g + 0.01) for g in (0.001, 0.1)]  # 3.0 is clipped
    np.testing.assert_allclose(tree["masks"]["w"], [5 - steps[0], 5 - steps[1]], rtol=1e-4)
    assert set(state) == {"params", "masks"}


def test_masks_without_gradient_stay_exactly():
    tree = {"params": {"w": jnp.ones(1)}, "masks": {"w": jnp.full(2, 5.0)}}
    grads = jax.tree.map(jnp.zeros_like, tree)
    tree, _ = apply({}, grads, tree, steps=3, trains_masks=True)
    np.testing.assert_array_equal(tree["masks"]["w"], [5.0, 5.0])


def test_other_entries_are_refused():
    tree = {"params": {"w": jnp.ones(1)}, "masks": {"w": jnp.ones(1)}}
    with pytest.raises(ConfigError, match=r"expects entries \['params'\], got \['masks', 'params'"):
        make_optimizer({}, 10).init(tree)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "adan"}, r"optimizer.name is 'adan'; did you mean 'adam'\?"),
        ({"learnign_rate": 1}, "unknown key; did you mean 'learning_rate'"),
        ({"schedule": "step"}, "optimizer.schedule is 'step', which needs steps_per_epoch"),
        ({"learning_rate": -1}, "optimizer.learning_rate is -1.0; expected at least 0"),
        ({"alpha": 1}, "optimizer.alpha is 1.0; expected at least 0 and below 1"),
        ({"clip_at": 0}, "optimizer.clip_at is 0.0; expected above 0"),
        ({"learning_rate": 1e-6}, "optimizer.learning_rate_min is 1e-05, above"),
    ],
)
def test_mistakes_are_named(config, message):
    with pytest.raises(ConfigError, match=message):
        make_optimizer(ConfigDict(config), 10)


def test_total_steps_must_be_positive():
    with pytest.raises(ConfigError, match="total_steps is 0"):
        make_optimizer({}, 0)
