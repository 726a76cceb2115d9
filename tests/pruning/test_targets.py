"""Distributions, structures and overrides, against counts and masks worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning import make_pruner, sparsity
from sparsecap_jax.pruning.targets import erk, make_targets

SHAPES = {("a", "kernel"): (4, 8), ("b", "kernel"): (100, 50)}


def params(**tensors):
    return {name: {"kernel": jnp.asarray(value, jnp.float32)} for name, value in tensors.items()}


def random_params(seed=0):
    rng = np.random.default_rng(seed)
    return params(**{path[0]: rng.normal(size=shape) for path, shape in SHAPES.items()})


def instant(name, tree, **fields):
    pruner = make_pruner({"name": name, **fields}, total_steps=100)
    return pruner.instant_sparsify(tree)[1]


def test_erk_by_hand():
    # a: 12/32 = 0.375, b: 150/5000 = 0.03; kept as by uniform: 4 + 500. 504/162 * 0.375 > 1, so a
    # stays dense, and b keeps the other 472 of its 5000.
    found = erk(SHAPES, 0.9)
    assert found["a", "kernel"] == 0.0
    assert found["b", "kernel"] == pytest.approx(1 - 472 / 5000, rel=1e-12)
    # 4 * 12 + 4 * 150 would be the raw sums at scale 4; at 0.99: kept 1 + 50 = 51, scale 51/162.
    found = erk(SHAPES, 0.99)
    assert found["a", "kernel"] == pytest.approx(1 - 51 / 162 * 0.375, rel=1e-12)
    assert found["b", "kernel"] == pytest.approx(1 - 51 / 162 * 0.03, rel=1e-12)
    assert erk(SHAPES, 0.0) == {("a", "kernel"): 0.0, ("b", "kernel"): 0.0}


def test_groups_sizes_and_counts():
    found = make_targets(SHAPES, 0.9, "global")
    assert (found.groups, found.sizes, found.removals()) == ((0, 0), (5032,), [4528])
    found = make_targets(SHAPES, 0.9, "uniform")
    assert (found.groups, found.sizes, found.removals()) == ((0, 1), (32, 5000), [28, 4500])
    three = {**SHAPES, ("c", "kernel"): (10, 10)}
    found = make_targets(three, 0.9, "global", ("b/.*=0.25",))
    assert (found.groups, found.sizes, found.removals()) == ((0, 1, 0), (132, 5000), [118, 1250])


@pytest.mark.parametrize("name", ["magnitude", "mag_blind", "global_magnitude", "static_sparse"])
def test_an_override_holds_for_its_leaves_and_the_target_for_the_others(name):
    masks = instant(name, random_params(), sparsity=0.9, overrides="a/kernel=0.5")
    assert sparsity(masks).tensor_nonzeros == {"a/kernel": 16, "b/kernel": 500}


def test_overrides_with_erk_and_in_a_schedule():
    masks = instant("magnitude", random_params(), distribution="erk", overrides="a/.*=0.75")
    assert sparsity(masks).tensor_nonzeros == {"a/kernel": 8, "b/kernel": 1000}
    fields = {"start_step": 0, "frequency": 1, "events": 2, "overrides": ("b/kernel=0.2",)}
    pruner = make_pruner({"name": "mag_grad_blind", **fields}, total_steps=2)
    state, counts = pruner.init(jax.random.key(0), random_params()), []
    for step in range(3):
        state = pruner.update(state, random_params(), None, jnp.int32(step))
        counts.append(sparsity(state.masks).tensor_nonzeros)
    # The cubic rise has done 7/8 of its way at half of its time.
    assert counts == [
        {"a/kernel": 32, "b/kernel": 5000},
        {"a/kernel": 32 - int(32 * 0.7), "b/kernel": 5000 - 875},
        {"a/kernel": 32 - int(32 * 0.8), "b/kernel": 4000},
    ]
    assert pruner.reached(state.masks)


def test_supermasks_are_pushed_to_their_own_targets():
    pruner = make_pruner(
        {"name": "supermask", "sparsity": 0.9, "overrides": "b/.*=0.5", "sparsity_weight": 2.0},
        total_steps=10,
    )
    logits = {
        "a": {"kernel": jnp.ones((4, 8), jnp.float32)},
        "b": {"kernel": jnp.ones((100, 50), jnp.float32).at[:20].set(-1.0)},
    }
    loss, metrics = pruner.penalty(logits, jnp.int32(10))
    # a: sparsity 0 of 0.9; b: 0.2 of 0.5; at the end the loss has its whole weight.
    gap = (32 * 0.9 + 5000 * 0.3) / 5032
    np.testing.assert_allclose(loss, 2.0 * gap, rtol=1e-6)
    np.testing.assert_allclose(metrics["sparsity"], 1000 / 5032, rtol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("a/kernel", "'a/kernel'; expected PATTERN=SPARSITY"),
        ("a/.*=1.0", "at least 0 and below 1"),
        ("a/.*=x", "expected PATTERN=SPARSITY"),
        ("c/.*=0.5", r"pruner.overrides: 'c/\.\*' matches none"),
    ],
)
def test_bad_overrides(overrides, message):
    with pytest.raises(ConfigError, match=message):
        instant("magnitude", random_params(), overrides=overrides)


def test_two_of_four_by_hand():
    tree = params(w=[[4, -3, 2, 1, 0, 0, 0, 0], [1, 5, -7, 6, 2, 2, 2, -1]])
    masks = instant("magnitude", tree, sparsity=0.5, sparsity_type="2:4")
    # Of equal scores the earlier goes first.
    expected = [[1, 1, 0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 0, 1, 1, 0]]
    np.testing.assert_array_equal(masks["w"]["kernel"], expected)
    across = params(w=np.array(tree["w"]["kernel"]).T)
    fields = {"sparsity": 0.5, "sparsity_axis": 0, "sparsity_type": "nm_2,4"}
    masks = instant("global_magnitude", across, **fields)
    np.testing.assert_array_equal(masks["w"]["kernel"], np.array(expected).T)


def test_one_of_ten_survives_rounding():
    """0.9 * 10 in binary may fall below 9."""
    tree = params(w=np.arange(40.0).reshape(2, 20))
    masks = instant("magnitude", tree, sparsity=1 - 1 / 10, sparsity_type="1:10")
    np.testing.assert_array_equal(masks["w"]["kernel"], np.tile(np.arange(10) == 9, (2, 2)))
    masks = instant("magnitude", tree, sparsity=1 - 9 / 10, sparsity_type="9:10")
    np.testing.assert_array_equal(masks["w"]["kernel"], np.tile(np.arange(10) != 0, (2, 2)))


def test_n_of_m_in_a_schedule_and_with_an_override():
    tree = params(v=np.arange(8.0).reshape(1, 8), w=np.arange(8.0).reshape(1, 8))
    fields = {"start_step": 0, "frequency": 1, "events": 2, "overrides": "v/.*=0"}
    pruner = make_pruner(
        {"name": "magnitude", "sparsity": 0.75, "sparsity_type": "1:4", **fields}, total_steps=2
    )
    state = pruner.init(jax.random.key(0), tree)
    kept = []
    for step in range(3):
        state = pruner.update(state, tree, None, jnp.int32(step))
        kept.append(sparsity(state.masks).tensor_nonzeros["w/kernel"])
    assert kept == [8, 4, 2]  # of four: 0, int(4 * 0.65625) = 2 and 3 go
    np.testing.assert_array_equal(state.masks["w"]["kernel"], [[0, 0, 0, 1] * 2])
    np.testing.assert_array_equal(state.masks["v"]["kernel"], np.ones((1, 8)))


def test_blocks_by_hand():
    tree = params(w=[[9, 9, 1, 1, 5], [9, -9, 1, 1, 5], [2, 2, 0, 0, 0]])
    # Means of the 2x2 blocks, those at the edge smaller: 9, 1, 5 / 2, 0, 0.
    masks = instant("magnitude", tree, sparsity=0.5, sparsity_type="2x2")
    expected = [[1, 1, 0, 0, 1], [1, 1, 0, 0, 1], [1, 1, 0, 0, 0]]
    np.testing.assert_array_equal(masks["w"]["kernel"], expected)
    masks = instant("magnitude", tree, sparsity=0.7, sparsity_type="block_2,2")  # 4 of 6 blocks
    expected = [[1, 1, 0, 0, 1], [1, 1, 0, 0, 1], [0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(masks["w"]["kernel"], expected)


def test_blocks_of_convolutions_and_over_all_tensors():
    rng = np.random.default_rng(0)
    tree = params(c=rng.normal(size=(3, 3, 8, 4)), w=rng.normal(size=(8, 8)))
    masks = instant("mag_blind", tree, sparsity=0.75, sparsity_type="4x4")
    kept = 0
    for name, shape in (("c", (9, 2, 1)), ("w", (1, 2, 2))):
        mask = np.asarray(masks[name]["kernel"]).reshape(shape[0], shape[1], 4, shape[2], 4)
        blocks = mask.mean(axis=(2, 4))
        assert set(np.unique(blocks)) <= {0.0, 1.0}
        kept += int(blocks.sum())
    assert kept == 22 - int(0.75 * 22)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sparsity_type": "4:2"}, "type is '4:2'; expected 'unstructured', 'channels', N:M"),
        ({"sparsity_type": "2y2"}, "sparsity_type is '2y2'"),
        ({"sparsity_type": "0x2"}, "sparsity_type is '0x2'"),
        ({"sparsity_type": "2:4"}, "sparsity is 0.8, but .* '2:4' removes 0.5"),
        ({"sparsity_type": "2:4", "sparsity": 0.5, "distribution": "erk"}, "does not go with N:M"),
        ({"sparsity_type": "1:5"}, r"axis -1 of 'a/kernel' with shape \(4, 8\) is no multiple"),
        ({"distribution": "even"}, "distribution is 'even'"),
    ],
)
def test_bad_structures(fields, message):
    with pytest.raises(ConfigError, match=message):
        instant("magnitude", random_params(), **fields)
