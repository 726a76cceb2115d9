"""Smaller dense models: the outputs of the pruned ones, and counts by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning import Axis, Units, compact

RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def mlp(p, x):
    hidden = np.maximum(x @ p["a"]["kernel"] + p["a"]["bias"], 0)
    hidden = np.maximum(hidden @ p["b"]["kernel"] + p["b"]["bias"], 0)
    return hidden @ p["c"]["kernel"] + p["c"]["bias"]


def three_layers():
    sizes = {"a": (5, 6), "b": (6, 7), "c": (7, 3)}
    return {name: {"kernel": draw(*s), "bias": draw(s[1])} for name, s in sizes.items()}


def link(one, two, **options):
    makes = {f"{one}/kernel": -1, f"{one}/bias": -1}
    options = {"activation": jax.nn.relu, "bias": f"{two}/bias"} | options
    return Units(makes, {f"{two}/kernel": -2}, **options)


CHAIN = (link("a", "b"), link("b", "c"))


def test_a_chain_loses_its_dead_units():
    """Unread ones, constant ones, and those that only dead units read."""
    p, x = three_layers(), draw(10, 5)
    p["c"]["kernel"][[1, 4]] = 0  # b1 and b4 are unread
    p["b"]["kernel"][2, [0, 2, 3, 5, 6]] = 0  # a2 is read by b1 and b4 alone
    p["a"]["kernel"][:, [0, 3]] = 0  # a0 and a3 are constants: 1.5, and relu(-1) = 0
    p["a"]["bias"][[0, 3]] = 1.5, -1.0
    expected = mlp(p, x)
    small = compact(p, CHAIN)
    assert small.units == ((3, 6), (5, 7)) and small.widths == {} and small.masks is None
    assert small.params["a"]["kernel"].shape == (5, 3)
    assert small.params["b"]["kernel"].shape == (3, 5)
    # 5*6+6 + 6*7+7 + 7*3+3 = 109 and 5*3+3 + 3*5+5 + 5*3+3 = 56.
    assert small.sizes == (56, 109)
    np.testing.assert_allclose(mlp(small.params, x), expected, atol=1e-5)
    bias = p["b"]["bias"] + 1.5 * p["b"]["kernel"][0]
    np.testing.assert_allclose(small.params["b"]["bias"], bias[[0, 2, 3, 5, 6]], 1e-6)
    np.testing.assert_array_equal(small.params["a"]["kernel"], p["a"]["kernel"][:, [1, 4, 5]])


def test_without_an_activation_or_a_bias_constants_stay():
    p = three_layers()
    p["a"]["kernel"][:, [0, 3]] = 0
    p["a"]["bias"][[0, 3]] = 1.5, -1.0
    assert compact(p, [link("a", "b", activation=None, bias="")]).units == ((6, 6),)
    assert compact(p, [link("a", "b", bias="")]).units == ((5, 6),)
    # tanh(-1) is not 0, and goes into the bias.
    assert compact(p, [link("a", "b", activation=jnp.tanh)]).units == ((4, 6),)
    assert compact(p, [link("a", "b", activation=jnp.tanh, bias="")]).units == ((6, 6),)


def test_masks_are_applied_and_shrink_along():
    p, x = three_layers(), draw(4, 5)
    masks = {"b": {"kernel": np.ones((6, 7), np.float32)}}
    masks["b"]["kernel"][[0, 5]] = 0
    masks["b"]["kernel"][1, 1] = 0
    small = compact(p, CHAIN, masks)
    assert small.units == ((4, 6), (7, 7))
    assert small.masks["b"]["kernel"].shape == (4, 7)
    assert float(small.masks["b"]["kernel"].sum()) == 27
    p["b"]["kernel"] = p["b"]["kernel"] * masks["b"]["kernel"]
    np.testing.assert_allclose(mlp(small.params, x), mlp(p, x), atol=1e-5)


def test_layers_of_one_width_keep_as_many_units_and_at_least_one():
    p, x = three_layers(), draw(4, 5)
    p["b"]["kernel"] = draw(6, 6)
    p["b"]["bias"], p["c"]["kernel"] = draw(6), draw(6, 3)
    p["b"]["kernel"][[0, 1, 2]] = 0
    p["c"]["kernel"][4] = 0
    chain = [link("a", "b", width="hidden"), link("b", "c", width="hidden")]
    small = compact(p, chain)
    assert small.widths == {"hidden": 5} and small.units == ((5, 6), (5, 6))
    np.testing.assert_allclose(mlp(small.params, x), mlp(p, x), atol=1e-5)
    p["c"]["kernel"][:] = 0
    small = compact(p, CHAIN)
    assert small.units == ((1, 6), (1, 6))
    np.testing.assert_allclose(mlp(small.params, x), mlp(p, x), atol=1e-5)


def test_units_that_only_feed_themselves_are_dead():
    """A recurrent layer h' = tanh(x a + h r): 1 and 2 feed each other, nothing else reads them."""
    p = {"a": draw(4, 5), "r": draw(5, 5), "out": draw(5, 2)}
    p["out"][[1, 2]] = 0
    p["r"][np.ix_([1, 2], [0, 3, 4])] = 0

    def run(p, xs):
        state = jnp.zeros(p["r"].shape[0])
        for x in xs:
            state = jnp.tanh(x @ p["a"] + state @ p["r"])
        return state @ p["out"]

    xs = draw(6, 4)
    small = compact(p, [Units({"a": -1, "r": -1}, {"r": -2, "out": -2})])
    assert small.units == ((3, 5),) and small.params["r"].shape == (3, 3)
    np.testing.assert_allclose(run(small.params, xs), run(p, xs), atol=1e-5)


@pytest.mark.parametrize("order", ["hwc", "chw"])
def test_channels_of_a_flattened_convolution(order):
    class Net(nn.Module):
        channels: int

        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(self.channels, (3, 3), name="conv")(x))
            x = jnp.moveaxis(x, -1, 1) if order == "chw" else x
            return nn.Dense(3, name="out")(x.reshape(len(x), -1))

    x = draw(2, 4, 4, 2)
    p = jax.device_get(Net(5).init(jax.random.key(0), x)["params"])
    p = jax.tree.map(np.array, p)
    p["conv"]["bias"] = draw(5)
    p["conv"]["bias"][1] = 0.75
    p["conv"]["kernel"][..., 1] = 0
    rows = p["out"]["kernel"].reshape((16, 5, 3) if order == "hwc" else (5, 16, 3))
    (rows[:, 3] if order == "hwc" else rows[3])[:] = 0
    axis = Axis(-2, blocks=16) if order == "hwc" else Axis(-2, width=16)
    makes = {"conv/kernel": -1, "conv/bias": -1}
    small = compact(p, [Units(makes, {"out/kernel": axis}, jax.nn.relu, "out/bias")])
    assert small.units == ((3, 5),)
    before = Net(5).apply({"params": p}, x)
    np.testing.assert_allclose(Net(3).apply({"params": small.params}, x), before, atol=1e-5)


def test_modules_of_nnx():
    model = nnx.Sequential(
        nnx.Linear(4, 6, rngs=nnx.Rngs(0)), nnx.tanh, nnx.Linear(6, 2, rngs=nnx.Rngs(1))
    )
    kernel = model.layers[2].kernel
    kernel[...] = kernel[...].at[jnp.array([0, 3])].set(0.0)
    makes = {"layers/0/kernel": -1, "layers/0/bias": -1}
    small = compact(model, [Units(makes, {"layers/2/kernel": -2})])
    assert small.params.layers[0].kernel.shape == (4, 4)
    x = draw(3, 4)
    np.testing.assert_allclose(small.params(x), model(x), atol=1e-6)


class Dropped(nnx.Module):
    """A batch norm, whose statistics shrink as well, and dropout, which has a key."""

    def __init__(self, rngs):
        self.one, self.two = nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)
        self.norm, self.drop = nnx.BatchNorm(6, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.two(self.drop(self.norm(self.one(x))))


def test_modules_of_nnx_with_dropout_and_batch_norm():
    model = Dropped(nnx.Rngs(0))
    model(draw(8, 4))  # statistics other than 0 and 1
    model.eval()
    model.two.kernel[...] = model.two.kernel[...].at[jnp.array([1, 5])].set(0.0)
    vectors = ("one/bias", "norm/scale", "norm/bias", "norm/mean", "norm/var")
    makes = {"one/kernel": -1} | dict.fromkeys(vectors, -1)
    small = compact(model, [Units(makes, {"two/kernel": -2})])
    # 4*6 + 5*6 + 6*2 + 2 = 68 and 4*4 + 5*4 + 4*2 + 2 = 46; no key, no counter.
    assert small.units == ((4, 6),) and small.sizes == (46, 68)
    assert small.params.drop.rngs.key[...] == model.drop.rngs.key[...]
    assert small.params.one.out_features == 6
    x = draw(3, 4)
    np.testing.assert_allclose(small.params(x), model(x), atol=1e-6)
    with pytest.raises(ConfigError, match="'norm/scale' is no bias by its name"):
        compact(model, [Units(makes, {"two/kernel": -2}, jax.nn.relu)])


@pytest.mark.parametrize(
    ("units", "message"),
    [
        (Units({"a/kernel": -1}, {"d/kernel": -2}), "no parameter 'd/kernel'"),
        (Units({"a/kernel": -1}, {"c/kernel": -2}), r"'c/kernel' of shape \(7, 3\) does not hold"),
        (Units({"b/kernel": -1}, {"b/kernel": Axis(-2)}), "does not hold the 7 units"),
        (Units({"a/kernel": Axis(-1, 2)}, {"b/kernel": -2}), "does not hold units alone"),
        (
            Units({"a/kernel": -1, "a/scale": -1}, {"b/kernel": -2}, jax.nn.relu),
            "'a/scale' is no bias by its name",
        ),
        (Units({"a/kernel": -1}, {}), "expected leaves that make and that read"),
        (
            Units({"a/kernel": -1}, {"b/kernel": -2}, jnp.cos, "c/bias"),
            r"'c/bias' of shape \(3,\) is no bias of 'b/kernel', whose products have shape \(7,\)",
        ),
    ],
)
def test_chains_that_do_not_fit(units, message):
    p = three_layers()
    p["a"]["kernel"][:, 0] = 0
    p["a"]["scale"] = np.ones(6, np.float32)
    with pytest.raises(ConfigError, match=message):
        compact(p, [units])
