"""One suite over the whole registry, on a small MLP."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning import (
    PRUNERS,
    apply_masks,
    check_binary,
    finalize,
    make_pruner,
    sparsity,
)
from sparsecap_jax.pruning.paths import by_path
from sparsecap_jax.training.optimizers import make_optimizer

STEPS = 20
NAMES = sorted(PRUNERS)
PRUNING = [name for name in NAMES if name != "none"]
PER_TENSOR = {
    *("mag_uniform", "mag_grad_uniform", "lottery_mag_uniform", "magnitude", "saliency", "random"),
    *("magnitude_ste", "static_sparse", "set", "rigl"),
}
# Dense_0 [6, 16], Dense_1 [16, 4]
SIZES = {"Dense_0/kernel": 96, "Dense_1/kernel": 64}


class MLP(nn.Module):
    hidden: int = 16

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(self.hidden)(x))
        return nn.Dense(4)(x)


@functools.cache
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 6)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(np.sin(x @ rng.normal(size=(6, 4))).astype(np.float32))


@functools.cache
def fresh(seed, hidden=16):
    return MLP(hidden).init(jax.random.key(seed), data()[0])["params"]


def mse(params, batch):
    model = MLP(params["Dense_0"]["bias"].size)
    return jnp.mean(jnp.square(model.apply({"params": params}, batch[0]) - batch[1]))


def build(name, **fields):
    target = {} if name in ("none", "mask_freeze", "lottery_mask_freeze") else {"sparsity": 0.7}
    return make_pruner({"name": name, **target, **fields}, total_steps=STEPS, steps_per_epoch=2)


def magnitude_masks(params):
    pruner = build("mag_blind")
    return pruner.prepare(pruner.init(jax.random.key(0), params), params).masks


def begin(pruner):
    """Initial weights in `init`, other weights in `prepare`; pruned ones where masks are given."""
    state = pruner.init(jax.random.key(1), fresh(0))
    params = fresh(1)
    if "mask_freeze" in pruner.name:
        params = finalize(params, magnitude_masks(params))
    state = pruner.prepare(state, params, jax.grad(mse), [data()] * pruner.batches_needed)
    return pruner.rewind(state, params)


def make_step(pruner, tx):
    def loss_fn(tree, fixed, step, batch, rng):
        masks = tree.get("masks", fixed)
        loss = mse(pruner.apply(tree["params"], pruner.sample(masks, rng)), batch)
        return loss + pruner.penalty(masks, step)[0]

    @jax.jit
    def train_step(params, state, opt_state, step, batch):
        rng = jax.random.fold_in(jax.random.key(2), step)
        tree = {"params": params} | ({"masks": state.masks} if pruner.trains_masks else {})
        grads = jax.grad(loss_fn)(tree, state.masks, step, batch, rng)
        kept = {**grads, "params": pruner.gradients(grads["params"], state.masks)}
        updates, opt_state = tx.update(kept, opt_state, tree)
        tree = optax.apply_updates(tree, updates)
        state = state.replace(masks=tree.get("masks", state.masks))
        step = step + jnp.int32(1)
        state = pruner.update(state, tree["params"], grads["params"], step, rng)
        params, opt_state = pruner.settle(tree["params"], opt_state, state.masks)
        return params, state, opt_state, step

    return train_step


def start(pruner):
    tx = make_optimizer({"learning_rate": 0.01}, STEPS, 2, pruner.trains_masks)
    state, params = begin(pruner)
    tree = {"params": params} | ({"masks": state.masks} if pruner.trains_masks else {})
    return make_step(pruner, tx), (params, state, tx.init(tree), jnp.zeros((), jnp.int32))


def train(pruner, steps=STEPS):
    train_step, carry = start(pruner)
    for _ in range(steps):
        carry = train_step(*carry, data())
    assert train_step._cache_size() == 1, "the step was compiled anew"
    return carry


def assert_equal_trees(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("name", NAMES)
def test_twenty_steps(name):
    pruner = build(name)
    assert hash(pruner) == hash(build(name))
    _, begun = start(pruner)
    params, state, _, step = train(pruner)
    assert int(step) == STEPS
    assert mse(params, data()) < mse(begun[0], data())  # dense weights learn as well
    binary = pruner.binarize(state.masks)
    check_binary(binary)
    assert_equal_trees(jax.jit(pruner.binarize)(state.masks), binary)
    found = sparsity(binary, params)
    if name == "none":
        assert found.nonzeros == found.prunable_size == 0
        return
    if pruner.trains_masks:  # the target is met about, not exactly
        return
    expected = 160 - int(0.7 * 160)
    if name in PER_TENSOR:
        expected = sum(size - int(0.7 * size) for size in SIZES.values())
        assert {n: SIZES[n] - int(0.7 * SIZES[n]) for n in SIZES} == found.tensor_nonzeros
    assert found.nonzeros == expected
    done = finalize(params, binary)
    assert np.count_nonzero(done["Dense_0"]["kernel"]) == found.tensor_nonzeros["Dense_0/kernel"]
    assert pruner.reached(binary)


@pytest.mark.parametrize("name", PRUNING)
def test_save_and_restore_equals_going_on(name):
    pruner = build(name)
    through = train(pruner)
    train_step, carry = start(pruner)
    for _ in range(STEPS // 2):
        carry = train_step(*carry, data())
    leaves, structure = jax.tree.flatten(carry)
    saved = [(np.asarray(leaf).tobytes(), leaf.shape, leaf.dtype) for leaf in leaves]
    restored = [np.frombuffer(raw, dtype).reshape(shape) for raw, shape, dtype in saved]
    carry = jax.tree.unflatten(structure, [jnp.asarray(leaf) for leaf in restored])
    for _ in range(STEPS - STEPS // 2):
        carry = train_step(*carry, data())
    assert_equal_trees(carry, through)


@pytest.mark.parametrize("name", PRUNING)
def test_frozen_masks_stay_and_do_not_count(name):
    pruner = build(name, freeze="Dense_1/.*")
    state, _ = begin(pruner)
    before = np.asarray(by_path(state.masks)["Dense_1", "kernel"])
    _, state, _, _ = train(pruner)
    np.testing.assert_array_equal(by_path(state.masks)["Dense_1", "kernel"], before)
    if not pruner.trains_masks and "mask_freeze" not in name:
        assert pruner.reached(state.masks)  # frozen masks do not count
        found = sparsity(state.masks)
        assert found.tensor_nonzeros == {"Dense_0/kernel": 96 - 67, "Dense_1/kernel": 64}


@pytest.mark.parametrize("name", PRUNING)
def test_an_excluded_leaf_has_no_mask(name):
    pruner = build(name, exclude="Dense_0/.*")
    state, params = begin(pruner)
    assert list(by_path(state.masks)) == [("Dense_1", "kernel")]
    masked = apply_masks(params, pruner.sample(state.masks, jax.random.key(0)))
    assert masked["Dense_0"]["kernel"] is params["Dense_0"]["kernel"]


@pytest.mark.parametrize("name", PRUNING)
def test_eight_devices_give_the_masks_of_one(name):
    pruner = build(name)
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))

    def spread(leaf):
        split = leaf.ndim == 2 and leaf.shape[0] % 8 == 0
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec("data" if split else None)))

    state, params = begin(pruner)
    step = jnp.int32(STEPS)  # the last event of the gradual ones lies before
    rng = jax.random.key(3)

    @jax.jit
    def after(state, params):
        for event in (2, 6, 10):
            state = pruner.update(state, params, params, jnp.int32(event), rng)
        return state.masks, pruner.sample(state.masks, rng), pruner.penalty(state.masks, step)

    single = after(state, params)
    assert_equal_trees(after(jax.tree.map(spread, state), jax.tree.map(spread, params)), single)


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("lottery")])
def test_lottery_tickets_rewind_all_weights(name):
    state, params = begin(build(name))
    assert_equal_trees(params, fresh(0))
    assert state.extras == {}
    one_shot = build(name.removeprefix("lottery_")) if "mag" in name else build("mag_blind")
    found = one_shot.prepare(one_shot.init(jax.random.key(0), fresh(1)), fresh(1))
    assert_equal_trees(state.masks, found.masks)


@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith("lottery")])
def test_other_methods_leave_the_weights(name):
    _, params = begin(build(name))
    expected = fresh(1)
    if name == "mask_freeze":
        expected = finalize(expected, magnitude_masks(expected))
    assert_equal_trees(params, expected)


def test_initial_weights_are_kept_in_buffers_of_their_own():
    params = jax.tree.map(jnp.array, fresh(0))
    state = build("lottery_mag_blind").init(jax.random.key(0), params)
    both = jax.jit(lambda p, s: (p, s), donate_argnums=(0, 1))(params, state)  # no buffer twice
    assert_equal_trees(both[1].extras["initial"], fresh(0))


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


@pytest.mark.parametrize("name", NAMES)
def test_class_attributes_say_what_a_method_needs(name):
    pruner = build(name)
    assert pruner.rewinds == name.startswith("lottery")
    assert pruner.needs_masks == name.endswith("mask_freeze")
    trained = ("mag_blind", "mag_uniform", "mag_dist", "mask_freeze")
    assert pruner.expects_trained == (name.removeprefix("lottery_") in trained)
    assert pruner.trains_masks == (name == "supermask")
    assert pruner.keeps_pruned == (name == "magnitude_ste")
    assert pruner.batches_needed == (1 if name == "snip" else 0)


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
