"""Random straight-through, AC/DC, and the structures of channels, maxima and iterative N:M."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning import make_pruner, sparse_step
from sparsecap_jax.pruning.variants import Alternating

RNG = np.random.default_rng(0)


def params(*shape):
    return {"kernel": jnp.asarray(RNG.normal(size=shape), jnp.float32)}


def instant(tree, **fields):
    name = fields.pop("name", "mag_uniform")
    pruner = make_pruner({"name": name, **fields}, total_steps=20)
    return np.asarray(pruner.instant_sparsify(tree)[1]["kernel"])


def test_phases_by_hand():
    """Warm-up to step 2, three sparse and two dense steps in turn, sparse from 14 on."""
    schedule = Alternating(start=2, sparse=3, dense=2, final=14)
    begins = {}
    for step in range(20):
        due, event = schedule.locate(jnp.int32(step))
        if due:
            begins[step] = int(event)
    # 2 sparse, 5 dense, 7 sparse, 10 dense, 12 sparse, and 14, the end, sparse.
    assert begins == {2: 0, 5: 1, 7: 2, 10: 3, 12: 4, 14: 6}
    assert schedule.events == 6 and schedule.end == 14
    assert int(schedule.locate(jnp.int32(18))[1]) == 6


def test_acdc():
    p, target = params(8, 8), RNG.normal(size=(8, 8)).astype(np.float32)
    fields = {"start_step": 2, "sparse_steps": 3, "dense_steps": 2, "final_step": 14}
    pruner = make_pruner({"name": "acdc", "sparsity": 0.75, **fields}, total_steps=20)
    step = sparse_step(
        pruner, optax.adam(1e-2), lambda p, b, r: jnp.sum(jnp.square(p["kernel"] - target))
    )
    state, take, old = step.init(jax.random.key(0), p), jax.jit(step), None
    for number in range(1, 21):
        before = np.asarray(state.prune.masks["kernel"])
        state, _ = take(state, None)
        mask, weight = (np.asarray(t["kernel"]) for t in (state.prune.masks, state.params))
        sparse = number in range(2, 5) or number in range(7, 10) or number >= 12
        assert mask.sum() == (16 if sparse else 64), number
        assert (weight[mask == 0] == 0).all()
        if number in (6, 11):  # from 0 by one step of Adam, without momentum
            freed = old == 0
            assert freed.sum() == 48
            first, second = 0.1 / (1 - 0.9**number), 0.001 / (1 - 0.999**number)
            moved = 1e-2 * first / np.sqrt(second)
            np.testing.assert_allclose(np.abs(weight[freed]), moved, rtol=1e-4)
        old = before if number in (5, 10) else old
    assert pruner.reached(state.prune.masks) and pruner.begun(state.prune.masks)
    with pytest.raises(ConfigError, match=r"pruner.final_step is 3; expected more than start_s"):
        make_pruner({"name": "acdc", "start_step": 5, "final_step": 3}, total_steps=9).init(
            jax.random.key(0), p
        )


def test_the_first_phase_is_never_before_training():
    schedule = make_pruner({"name": "acdc"}, total_steps=8).schedule
    assert (schedule.start, schedule.final) == (1, 7)
    with pytest.raises(ConfigError, match=r"start_step is 0; expected"):
        make_pruner({"name": "acdc", "start_step": 0}, total_steps=20)


def test_random_ste():
    """New masks at each step, all weights trained with the gradient of the masked ones."""
    p = params(10, 10)
    pruner = make_pruner({"name": "random_ste", "sparsity": 0.6}, total_steps=5)
    step = sparse_step(pruner, optax.sgd(1.0), lambda p, b, r: jnp.sum(p["kernel"] * b))
    slope = RNG.normal(size=(10, 10)).astype(np.float32)
    state, masks = step.init(jax.random.key(0), p), []
    for _ in range(3):
        masks.append(np.asarray(state.prune.masks["kernel"]))
        state, _ = step(state, slope)
    assert [mask.sum() for mask in masks] == [40] * 3
    assert len({mask.tobytes() for mask in masks}) == 3
    np.testing.assert_allclose(state.params["kernel"], p["kernel"] - 3 * slope, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_channels(axis):
    tree = params(5, 6, 7)
    mask = instant(tree, sparsity=0.5, sparsity_type="channels", sparsity_axis=axis)
    rows = np.moveaxis(np.abs(np.asarray(tree["kernel"])), axis, 0)
    means = rows.reshape(len(rows), -1).mean(1)
    kept = means >= np.sort(means)[int(0.5 * len(means))]
    np.testing.assert_array_equal(
        np.moveaxis(mask, axis, 0), np.broadcast_to(kept[:, None, None], rows.shape)
    )


def test_channels_of_no_axis():
    with pytest.raises(ConfigError, match=r"sparsity_axis is 2, but 'kernel' has shape \(4, 4\)"):
        instant(params(4, 4), sparsity_type="channels", sparsity_axis=2)


def test_blocks_by_their_maximum():
    """A block of one large weight stays, though its mean is the lowest."""
    kernel = np.full((4, 6), 0.5, np.float32)
    kernel[2:, 4:] = 0.0
    kernel[3, 5] = 0.9
    kernel[:2, :2] = 0.4
    tree = {"kernel": jnp.asarray(kernel)}
    for kind, gone in (("2x2", (2, 4)), ("2x2_max", (0, 0)), ("block_2,2_max", (0, 0))):
        mask = instant(tree, sparsity=1 / 6, sparsity_type=kind)
        assert mask.sum() == 20
        assert mask[gone[0] : gone[0] + 2, gone[1] : gone[1] + 2].sum() == 0
    odd = instant(params(5, 5), sparsity=0.5, sparsity_type="2x2_max")
    assert 0 < odd.sum() < 25


def test_iterative_patterns_end_as_the_pattern_itself():
    """On the way any weight may go but those that 2:4 keeps last; by a slow obvious count."""
    tree = params(8, 12)
    weights = np.abs(np.asarray(tree["kernel"]))
    final = instant(tree, sparsity=0.5, sparsity_type="2:4")
    pruner = make_pruner(
        {"name": "magnitude", "sparsity": 0.5, "sparsity_type": "iterative_2:4", "start_step": 0,
         "frequency": 1, "events": 4},
        total_steps=20,
    )  # fmt: skip
    state = pruner.init(jax.random.key(0), tree)
    for step in range(5):
        state = pruner.update(state, tree, None, step)
        mask = np.asarray(state.masks["kernel"])
        remove = int(0.5 * (1 - (1 - step / 4) ** 3) * 96)
        order = sorted((bool(final[i, j]), w, i, j) for (i, j), w in np.ndenumerate(weights))
        expected = np.ones((8, 12))
        for *_, i, j in order[:remove]:
            expected[i, j] = 0
        np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(mask, final)
    with pytest.raises(ConfigError, match=r"'iterative_2:4' removes 0.5"):
        make_pruner({"name": "magnitude", "sparsity_type": "iterative_2:4"}, total_steps=20)
    fields = {"sparsity": 0.5, "sparsity_type": "iterative_2:4"}
    assert instant(tree, **fields, overrides=("kernel=0.25",)).sum() == 72
    with pytest.raises(ConfigError, match=r"sparsity 0.75, but .* 'iterative_2:4' removes 0.5 at"):
        instant(tree, **fields, overrides=("kernel=0.75",))
