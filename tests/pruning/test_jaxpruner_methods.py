"""Random, saliency, straight-through, static, SET and RigL, on tensors small enough to see."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning import apply_straight_through, make_pruner, sparsity

STEPS = 8
EVERY = {"start_step": 2, "frequency": 2, "events": 2}  # steps 2, 4, 6


def tree(*rows):
    return {"w": {"kernel": jnp.asarray(rows, jnp.float32)}}


def build(name, **fields):
    return make_pruner({"name": name, "sparsity": 0.5, **fields}, total_steps=STEPS)


def kernel(masks):
    return np.asarray(masks["w"]["kernel"]).tolist()


def states(pruner, params, grads=None, seed=0):
    """Masks after steps 0..8."""
    state = pruner.init(jax.random.key(seed), params)
    update = jax.jit(lambda state, step: pruner.update(state, params, grads, step))
    found = [state]
    for step in range(1, STEPS + 1):
        found.append(update(found[-1], jnp.int32(step)))
    return [np.asarray(state.masks["w"]["kernel"]) for state in found]


def test_saliency_ranks_gradient_times_weight():
    params, grads = tree([1, 2, 3, 4], [5, 6, 7, 8]), tree([9, -9, 0, 1], [1, 0, 1, -1])
    pruner = build("saliency")
    pruned, masks = pruner.instant_sparsify(params, grads)
    # Products 9 18 0 4 / 5 0 7 8.
    assert kernel(masks) == [[1, 1, 0, 0], [0, 0, 1, 1]]
    assert kernel(pruned) == [[1, 2, 0, 0], [0, 0, 7, 8]]
    with pytest.raises(ConfigError, match="'saliency' ranks gradients"):
        pruner.instant_sparsify(params)


@pytest.mark.parametrize("name", ["mag_grad_blind", "magnitude", "random", "set", "magnitude_ste"])
def test_instant_pruning_asks_for_no_length_of_training(name):
    params = tree(*np.arange(1.0, 101.0).reshape(10, 10))
    fields = {} if name == "magnitude_ste" else {"start_step": 5}
    pruner = make_pruner({"name": name, "sparsity": 0.9, **fields}, total_steps=1)
    pruned, masks = pruner.instant_sparsify(params)
    assert np.count_nonzero(pruned["w"]["kernel"]) == sparsity(masks).nonzeros == 10
    if "mag" in name:
        assert kernel(pruned)[9] == list(range(91, 101))


def test_saliency_before_training_adds_up_batches():
    params = tree([1, 1, 1, 1])
    pruner = build("saliency", when="before", num_batches=2)
    assert pruner.batches_needed == 2
    shares = [tree([3, -2, 0, 1]), tree([-3, -2, 1, 1])]  # sums 0 -4 1 2
    state = pruner.init(jax.random.key(0), params)
    state = pruner.prepare(state, params, lambda params, batch: batch, shares)
    assert kernel(state.masks) == [[0, 1, 0, 1]]
    later = pruner.update(state, params, shares[0], jnp.int32(2))
    assert kernel(later.masks) == [[0, 1, 0, 1]]


@pytest.mark.parametrize("name", ["global_magnitude", "global_saliency"])
def test_global_scores_are_divided_by_their_norms(name):
    rng = np.random.default_rng(0)
    weights = {"a": rng.normal(size=(5, 6)), "b": 100 * rng.normal(size=(4, 10))}
    grads = {k: rng.normal(size=v.shape) for k, v in weights.items()}
    params, slopes = (
        {k: {"kernel": jnp.asarray(v, jnp.float32)} for k, v in found.items()}
        for found in (weights, grads)
    )
    _, masks = build(name, sparsity=0.6).instant_sparsify(params, slopes)
    raw = {k: np.abs(v * grads[k]) if "saliency" in name else np.abs(v) for k, v in weights.items()}
    scores = {k: v / (np.sqrt((v**2).sum()) + 1e-8) for k, v in raw.items()}
    limit = np.sort(np.concatenate([v.ravel() for v in scores.values()]))[int(0.6 * 70)]
    for name, score in scores.items():
        np.testing.assert_array_equal(masks[name]["kernel"], score >= limit)


def test_what_is_pruned_at_random_stays_pruned():
    params = tree(*np.ones((8, 8)))
    found = states(build("random", **EVERY), params)
    counts = [int(mask.sum()) for mask in found]
    half_way = 64 - int(64 * 0.5 * 0.875)
    assert counts == [64, 64, 64, 64, half_way, half_way, 32, 32, 32]
    assert (found[6] <= found[4]).all()
    other = states(build("random", **EVERY), params, seed=1)
    assert (other[6] != found[6]).any()
    np.testing.assert_array_equal(states(build("random", **EVERY), params)[6], found[6])


def test_a_random_mask_prefers_no_place():
    params = tree(*np.ones((4, 4)))
    masks = [build("static_sparse").init(jax.random.key(s), params).masks for s in range(200)]
    often = np.mean([np.asarray(mask["w"]["kernel"]) for mask in masks], axis=0)
    assert np.abs(often - 0.5).max() < 4 * 0.5 / np.sqrt(200)


def test_schedules():
    params = tree([1, 2, 3, 4, 5, 6, 7, 8])
    counts = {
        when: [int(mask.sum()) for mask in states(build("magnitude", when=when, **EVERY), params)]
        for when in ("polynomial", "periodic", "one_shot", "before")
    }
    assert counts["polynomial"] == [8, 8, 8, 8, 5, 5, 4, 4, 4]  # int(8 * 0.4375) = 3
    assert counts["periodic"] == counts["one_shot"] == [8, 8, 4, 4, 4, 4, 4, 4, 4]
    assert counts["before"] == [8] * 9
    # A run of three steps, too, has its one event.
    pruner = make_pruner({"name": "magnitude", "sparsity": 0.5, "when": "one_shot"}, total_steps=3)
    assert [int(mask.sum()) for mask in states(pruner, params)][:3] == [8, 4, 4]
    for start in (0, STEPS + 1):
        with pytest.raises(ConfigError, match=f"start_step is {start}; expected 1 to 8, the steps"):
            build("magnitude", when="one_shot", start_step=start).init(jax.random.key(0), params)
    # Periodic masks follow the weights, one-shot masks do not.
    other = tree([8, 7, 6, 5, 4, 3, 2, 1])
    for when, expected in (("periodic", [1] * 4 + [0] * 4), ("one_shot", [0] * 4 + [1] * 4)):
        pruner = build("magnitude", when=when, **EVERY)
        state = pruner.update(pruner.init(jax.random.key(0), params), params, None, jnp.int32(2))
        assert kernel(pruner.update(state, other, None, jnp.int32(4)).masks) == [expected]


def test_straight_through_gradients_reach_pruned_weights():
    """Finite differences of the loss by the masked weights, which is the definition."""
    params, masks = tree([1.0, -2.0, 3.0]), tree([1, 0, 1])
    inputs = jnp.asarray([[0.5], [-1.0], [2.0]], jnp.float32)

    def outer(kernel):
        return jnp.sum(jnp.sin(kernel @ inputs))

    found = jax.grad(lambda p: outer(apply_straight_through(p, masks)["w"]["kernel"]))(params)
    masked = np.array([[1.0, 0.0, 3.0]])

    def at(delta):
        return np.sin((masked + delta) @ np.asarray(inputs, np.float64)).sum()

    step = 1e-6
    slopes = [(at(step * unit) - at(-step * unit)) / (2 * step) for unit in np.eye(3)]
    np.testing.assert_allclose(found["w"]["kernel"][0], slopes, rtol=1e-5)
    value = apply_straight_through(params, masks)["w"]["kernel"]
    np.testing.assert_array_equal(value, masked)


def test_magnitude_ste_follows_the_weights_from_the_first_step():
    pruner = build("magnitude_ste")
    state = pruner.init(jax.random.key(0), tree([1, 2, 3, 4]))
    assert kernel(state.masks) == [[0, 0, 1, 1]]
    for step, weights, expected in (
        (1, [9, 2, 3, 4], [1, 0, 0, 1]),
        (2, [9, 8, 3, 4], [1, 1, 0, 0]),
        (8, [1, 1, 3, 4], [0, 0, 1, 1]),
    ):
        state = pruner.update(state, tree(weights), None, jnp.int32(step))
        assert kernel(state.masks) == [expected]
    # The pruned weight is trained on: two steps of the same gradient bring it back.
    tx = optax.sgd(1.0)
    params = tree([1.0, 2.0, 3.0, 4.0])
    state = pruner.init(jax.random.key(0), params)
    opt_state = tx.init(params)
    for step in (1, 2):
        push = jax.grad(lambda p, m: -3.0 * jnp.sum(pruner.apply(p, m)["w"]["kernel"][0, 0]))
        updates, opt_state = tx.update(push(params, state.masks), opt_state)
        params = optax.apply_updates(params, updates)
        state = pruner.update(state, params, None, jnp.int32(step))
    assert kernel(state.masks) == [[1, 0, 0, 1]]


def test_set_exchanges_the_smallest_for_random_ones():
    weights = np.arange(1.0, 101.0).reshape(10, 10)
    params = tree(*weights)
    fields = {**EVERY, "drop_fraction": 0.4}
    found = states(build("set", **fields), params)
    assert {int(mask.sum()) for mask in found} == {50}
    for step, fraction in ((2, 0.4 * 0.75), (4, 0.4 * 0.25), (6, 0.0)):  # half a cosine
        before, after = found[step - 1], found[step]
        drop = int(fraction * 50)
        held = np.sort(weights[before == 1])
        # Everything but the dropped stays; the dropped may come back by chance.
        assert (after[(before == 1) & (weights >= held[drop])] == 1).all()
        assert int((before * after).sum()) >= 50 - drop
        assert (before == after).all() == (drop == 0)
    for step in (1, 3, 5, 7, 8):
        np.testing.assert_array_equal(found[step], found[step - 1])


def test_rigl_grows_where_the_gradient_is_largest():
    params = tree([1, 2, 3, 4, 0, 0, 0, 0])
    grads = tree([0, 0, 0, 0, 1, -9, 2, 3])
    pruner = build("rigl", **EVERY, drop_fraction=2 / 3)
    state = pruner.init(jax.random.key(0), params)
    state = state.replace(masks=tree([1, 1, 1, 1, 0, 0, 0, 0]))
    # The first event exchanges int(2/3 * 0.75 * 4) = 2.
    after = pruner.update(state, params, grads, jnp.int32(2))
    assert kernel(after.masks) == [[0, 0, 1, 1, 0, 1, 0, 1]]
    assert kernel(pruner.gradients(grads, state.masks)) == [[0, 0, 0, 0, 0, 0, 0, 0]]
    assert kernel(pruner.gradients(grads, after.masks)) == [[0, 0, 0, 0, 0, -9, 0, 3]]
    with pytest.raises(ConfigError, match="'rigl' ranks gradients"):
        pruner.update(state, params, None, jnp.int32(2))


def test_grown_weights_start_at_zero_without_momentum():
    params = tree([1, 2, 3, 4, 5, 6, 7, 8])
    tx = optax.chain(optax.clip(1.0), optax.adam(0.1))
    opt_state = tx.init({"params": params})
    grads = {"params": tree([1, 1, 1, 1, 1, 1, 1, 1])}
    _, opt_state = tx.update(grads, opt_state)
    pruner = build("set", **EVERY)
    masks = tree([1, 1, 1, 1, 0, 0, 0, 0])
    params, opt_state = pruner.settle(params, opt_state, masks)
    assert kernel(params) == [[1, 2, 3, 4, 0, 0, 0, 0]]
    adam = opt_state[1][0]
    assert adam.mu["params"]["w"]["kernel"].tolist()[0][4:] == [0.0] * 4
    assert (np.asarray(adam.nu["params"]["w"]["kernel"])[0, :4] > 0).all()
    assert adam.nu["params"]["w"]["kernel"].tolist()[0][4:] == [0.0] * 4
    assert int(adam.count) == 1


def test_mistakes():
    with pytest.raises(ConfigError, match="'set' rewires single weights"):
        build("set", sparsity_type="2x2")
    with pytest.raises(ConfigError, match=r"drop_fraction is 1\.5"):
        build("rigl", drop_fraction=1.5)
    with pytest.raises(ConfigError, match="do not fit into 8 steps"):
        build("set", start_step=7, frequency=2, events=3).init(jax.random.key(0), tree([1.0]))
    with pytest.raises(ConfigError, match="'supermask' cannot find masks"):
        build("supermask").instant_sparsify(tree([1.0]))
    for name in ("supermask", "magnitude_ste"):
        with pytest.raises(ConfigError, match=f"'{name}' trains its pruned weights on"):
            build(name, hard_zero=True)


def test_masks_by_erk_in_a_sparse_training():
    params = {"a": {"kernel": jnp.ones((4, 8))}, "b": {"kernel": jnp.ones((100, 50))}}
    pruner = build("rigl", sparsity=0.9, distribution="erk")
    found = sparsity(pruner.init(jax.random.key(0), params).masks)
    assert found.tensor_nonzeros == {
        "a/kernel": 32,
        "b/kernel": 5000 - int(5000 * (1 - 472 / 5000)),
    }
