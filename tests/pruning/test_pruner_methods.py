"""What single methods do: supermasks, masks that are loaded, SNIP; and when pruning has begun."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pruner_cases import (
    assert_equal_trees,
    begin,
    build,
    data,
    fresh,
    magnitude_masks,
    make_step,
    mse,
)

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning import (
    apply_masks,
    finalize,
    make_pruner,
    sparsity,
)
from sparsecap_jax.training.optimizers import make_optimizer


def test_supermask_reaches_its_target():
    fields = {"name": "supermask", "sparsity": 0.9}
    pruner = make_pruner(fields, total_steps=400)
    tx = make_optimizer({"learning_rate": 0.01}, 400, None, True)
    params = fresh(0, hidden=256)
    state = pruner.init(jax.random.key(0), params)
    carry = (params, state, tx.init({"params": params, "masks": state.masks}), jnp.int32(0))
    train_step = make_step(pruner, tx)
    for _ in range(400):
        carry = train_step(*carry, data())
    params, state = carry[:2]
    binary = pruner.binarize(state.masks)
    assert pruner.reached(binary)
    found = sparsity(binary).prunable
    assert abs(found - 0.9) <= 0.05 * 0.1
    # The pruned network has learnt: a constant alone leaves the variance.
    loss = mse(apply_masks(params, pruner.binarize(state.masks)), data())
    assert loss < 0.3 * jnp.var(data()[1])


@pytest.mark.parametrize(
    ("fields", "weight"),
    [
        ({"sparsity": 0.8}, 5.0),
        ({"sparsity": 0.975}, 20.0),
        ({"sparsity": 0.975, "weight_scale": 1.5}, 60.0),
        ({"sparsity": 0.5, "weight_scale": 1.5}, 5.0),
        ({"sparsity": 0.975, "sparsity_weight": 120.0}, 120.0),
        ({"sparsity": 0.975, "sparsity_weight": 0}, 0.0),
    ],
)
def test_default_weight_of_the_sparsity_loss(fields, weight):
    assert build("supermask", **fields).loss_weight == pytest.approx(weight, rel=1e-12)


def test_frozen_supermasks_are_rounded_not_drawn():
    pruner = build("supermask", freeze="Dense_1/.*")
    state = pruner.init(jax.random.key(0), fresh(0))
    masks = jax.tree.map(lambda z: jnp.full_like(z, 0.25), state.masks)
    binary = pruner.sample(masks, jax.random.key(0))
    assert 0 < float(binary["Dense_0"]["kernel"].mean()) < 1
    assert float(binary["Dense_1"]["kernel"].mean()) == 1.0


def test_supermasks_read_the_sparsity_of_all_masks_after_a_step():
    pruner = make_pruner({"name": "supermask", "sparsity": 0.5, "freeze": ("b/.*",)}, total_steps=9)
    masks = {"a": {"kernel": jnp.array([[1.0, -1.0], [-2.0, 0.0]])}}
    masks["b"] = {"kernel": jnp.array([[3.0, 3.0], [-3.0, 3.0]])}
    found = pruner.readings(masks)
    assert found["sparsity"] == 0.5  # three of a and one of b, of eight; frozen ones count
    active = 1 / (1 + np.exp([-1.0, 1.0, 2.0, 0.0]))
    assert found["mask_probability"] == pytest.approx(active.mean())


def test_pruned_weights_are_kept_and_may_come_back():
    """Momentum and weight decay move a pruned weight on; it returns once it ranks high enough."""
    params = {"layer": {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]], jnp.float32)}}
    fields = {"name": "mag_grad_blind", "sparsity": 0.5, "start_step": 0, "frequency": 1}
    pruner = make_pruner({**fields, "events": 2, "initial_sparsity": 0.5}, total_steps=4)
    config = {"name": "sgdm", "learning_rate": 1.0, "schedule": "constant", "alpha": 0.5}
    tx = make_optimizer({**config, "clip": "none", "weight_decay": 0.1}, 4)
    tree = {"params": params}
    opt_state = tx.init(tree)
    # One step without masks: gradient 2 for the smallest weight.
    kick = {"params": {"layer": {"kernel": jnp.array([[2.0, 0.0], [0.0, 0.0]], jnp.float32)}}}
    updates, opt_state = tx.update(kick, opt_state, tree)
    tree = optax.apply_updates(tree, updates)
    state = pruner.update(pruner.init(jax.random.key(0), params), tree["params"], None, 0)
    np.testing.assert_allclose(tree["params"]["layer"]["kernel"], [[-1.1, 1.8], [2.7, 3.6]])
    np.testing.assert_array_equal(state.masks["layer"]["kernel"], [[0, 0], [1, 1]])
    # A masked step: no gradient for it, but momentum 0.5 * 2.1 and decay 0.1 * -1.1 move it.
    quiet = jax.grad(lambda p: jnp.sum(0.0 * apply_masks(p, state.masks)["layer"]["kernel"]))
    updates, opt_state = tx.update({"params": quiet(tree["params"])}, opt_state, tree)
    tree = optax.apply_updates(tree, updates)
    moved = -1.1 - (0.5 * 2.1 + 0.1 * -1.1)
    np.testing.assert_allclose(tree["params"]["layer"]["kernel"][0, 0], moved, rtol=1e-6)
    # Grown past the others, it comes back at the next event.
    grown = {"layer": {"kernel": tree["params"]["layer"]["kernel"].at[0, 0].set(-9.0)}}
    state = pruner.update(state, grown, None, 1)
    np.testing.assert_array_equal(state.masks["layer"]["kernel"], [[1, 0], [0, 1]])


def test_load_masks():
    pruner = build("mask_freeze", sparsity=0.7)
    state = pruner.init(jax.random.key(0), fresh(0))
    masks = jax.tree.map(np.asarray, magnitude_masks(fresh(1)))
    state = pruner.prepare(pruner.load_masks(state, masks), fresh(0))
    assert_equal_trees(jax.tree.map(np.asarray, state.masks), masks)
    with pytest.raises(ConfigError, match="differ in Dense_1/kernel"):
        pruner.load_masks(state, {"Dense_0": masks["Dense_0"]})
    with pytest.raises(ConfigError, match="'Dense_0/kernel' is not binary"):
        pruner.load_masks(state, jax.tree.map(lambda mask: mask * 0.5, masks))
    supermask = build("supermask")
    logits = jax.tree.map(lambda mask: 8.0 * mask - 4.0, masks)
    loaded = supermask.load_masks(supermask.init(jax.random.key(0), fresh(0)), logits)
    assert_equal_trees(jax.tree.map(np.asarray, supermask.binarize(loaded.masks)), masks)


def test_mask_freeze_wants_a_pruned_model_of_its_sparsity():
    pruner = build("mask_freeze")
    with pytest.raises(ConfigError, match="the model to start from is dense"):
        pruner.prepare(pruner.init(jax.random.key(0), fresh(0)), fresh(0))
    other = build("mask_freeze", sparsity=0.9)
    pruned = finalize(fresh(0), magnitude_masks(fresh(0)))
    with pytest.raises(ConfigError, match=r"sparsity is 0.9, but .* has 0.7000"):
        other.prepare(other.init(jax.random.key(0), pruned), pruned)


def test_snip_says_what_it_lacks():
    pruner = build("snip", num_batches=3)
    assert pruner.batches_needed == 3
    state = pruner.init(jax.random.key(0), fresh(0))
    with pytest.raises(ConfigError, match="needs grad_fn"):
        pruner.prepare(state, fresh(0))
    with pytest.raises(ConfigError, match="num_batches is 3; got 2 batches"):
        pruner.prepare(state, fresh(0), jax.grad(mse), [data()] * 2)


def test_snip_respects_frozen_masks_in_its_gradients():
    pruner = build("snip", freeze="Dense_1/.*")
    state = pruner.init(jax.random.key(0), fresh(0))
    hole = jnp.ones((16, 4), jnp.float32).at[:8].set(0.0)
    state = state.replace(masks={**state.masks, "Dense_1": {"kernel": hole}})
    state = pruner.prepare(state, fresh(0), jax.grad(mse), [data()])
    # Units whose outputs are cut off have no influence: 48 weights with score 0 go first.
    assert not np.asarray(state.masks["Dense_0"]["kernel"])[:, :8].any()
    assert int(state.masks["Dense_0"]["kernel"].sum()) == 96 - 67


def test_begun_is_true_once_a_mask_prunes():
    pruner = build("mag_grad_blind", start_step=2, frequency=2, events=1, freeze="Dense_1/.*")
    state, params = begin(pruner)
    begun = []
    for step in range(1, 6):
        state = pruner.update(state, params, None, jnp.int32(step))
        begun.append(pruner.begun(state.masks))
    assert begun == [False, False, False, True, True]  # the first event has sparsity 0
    hole = {**state.masks, "Dense_1": {"kernel": jnp.zeros((16, 4), jnp.float32)}}
    fresh_masks = pruner.init(jax.random.key(0), fresh(0)).masks
    assert not pruner.begun({**hole, "Dense_0": fresh_masks["Dense_0"]})  # frozen masks only
    supermask = build("supermask")
    logits = supermask.init(jax.random.key(0), fresh(0)).masks
    assert not supermask.begun(logits)
    logits["Dense_0"]["kernel"] = logits["Dense_0"]["kernel"].at[0, 0].set(-1.0)
    assert supermask.begun(logits)


def test_begun_is_true_where_there_is_nothing_to_prune():
    ones = build("mag_grad_blind").init(jax.random.key(0), fresh(0)).masks
    assert build("none").begun({})
    assert build("mag_grad_blind", sparsity=0.0).begun(ones)
    assert build("mag_grad_blind", sparsity=0.006).begun(ones)  # int(0.006 * 160) = 0
    assert not build("mag_grad_blind", sparsity=0.007).begun(ones)
    assert build("mag_grad_blind", freeze=".*").begun(ones)
