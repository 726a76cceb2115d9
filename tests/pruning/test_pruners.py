"""One suite over the whole registry, on a small MLP."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from pruner_cases import (
    NAMES,
    PER_TENSOR,
    PRUNING,
    SIZES,
    STEPS,
    assert_equal_trees,
    begin,
    build,
    data,
    fresh,
    magnitude_masks,
    mse,
    start,
    train,
)

from sparsecap_jax.pruning import (
    apply_masks,
    check_binary,
    finalize,
    sparsity,
)
from sparsecap_jax.pruning.paths import by_path


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
    if name in ("supermask", "soft_movement"):  # the target is met about, or there is none
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
    if name not in ("supermask", "soft_movement") and "mask_freeze" not in name:
        state = state.replace(masks=pruner.binarize(state.masks))
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


@pytest.mark.parametrize("name", NAMES)
def test_class_attributes_say_what_a_method_needs(name):
    pruner = build(name)
    assert pruner.rewinds == name.startswith("lottery")
    assert pruner.needs_masks == name.endswith("mask_freeze")
    trained = ("mag_blind", "mag_uniform", "mag_dist", "mask_freeze")
    assert pruner.expects_trained == (name.removeprefix("lottery_") in trained)
    assert pruner.trains_masks == (name in ("supermask", "movement", "soft_movement"))
    assert pruner.keeps_pruned == name.endswith("_ste")
    assert pruner.batches_needed == (1 if name == "snip" else 0)
