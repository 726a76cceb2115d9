"""Pruning from calibration batches, against slow versions in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from slow_pruning import slow_sparsegpt, slow_wanda

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.models.layers import Linear
from sparsecap_jax.pruning.layerwise import linen_inputs, prune_layers, sparsegpt, wanda
from sparsecap_jax.pruning.structures import NofM

RNG = np.random.default_rng(0)
PATTERN = NofM(2, 4, -2)


def case(inputs=12, outputs=5, rows=60):
    mixing = RNG.normal(size=(inputs, inputs))
    x = (RNG.normal(size=(rows, inputs)) @ mixing).astype(np.float32)
    return x, RNG.normal(size=(inputs, outputs)).astype(np.float32)


def gram(x):
    return jnp.asarray(x.T @ x)


@pytest.mark.parametrize("pattern", [None, PATTERN])
def test_wanda(pattern):
    """Output by output, the products of |weight| and the norm of its input, sorted."""
    x, kernel = case()
    pruned, mask = wanda(jnp.asarray(kernel), gram(x), 0.4, pattern)
    expected = slow_wanda(kernel, x, 0.4, pattern)
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(pruned, kernel * expected)


@pytest.mark.parametrize("pattern", [None, PATTERN])
@pytest.mark.parametrize("block", [128, 8])
def test_sparsegpt(pattern, block):
    x, kernel = case()
    pruned, mask = sparsegpt(jnp.asarray(kernel), gram(x), 0.5, pattern, block=block)
    expected, slow_mask = slow_sparsegpt(kernel, x, 0.5, pattern, block)
    np.testing.assert_array_equal(mask, slow_mask)
    np.testing.assert_allclose(pruned, expected, atol=2e-4)
    assert (np.asarray(pruned)[np.asarray(mask) == 0] == 0).all()


def test_corrections_lower_the_error():
    """Of the layer's outputs; the least squares of SparseGPT's mask are a bound."""
    x, kernel = case(32, 16, 300)
    errors = {}
    for name, function in (("wanda", wanda), ("sparsegpt", sparsegpt)):
        pruned, mask = function(jnp.asarray(kernel), gram(x), 0.5)
        errors[name] = np.square(x @ np.asarray(pruned) - x @ kernel).sum()
    smallest = np.sort(np.abs(kernel).ravel())[kernel.size // 2]
    magnitude = np.where(np.abs(kernel) < smallest, 0, kernel)
    errors["magnitude"] = np.square(x @ magnitude - x @ kernel).sum()
    best = 0.0
    for column in range(16):
        kept = np.asarray(mask)[:, column] != 0
        solution = np.linalg.lstsq(x[:, kept], x @ kernel[:, column], rcond=None)[0]
        best += np.square(x[:, kept] @ solution - x @ kernel[:, column]).sum()
    assert best <= errors["sparsegpt"] < min(errors["wanda"], errors["magnitude"])


def test_inputs_that_are_always_zero():
    x, kernel = case()
    x[:, [2, 7]] = 0
    pruned, _ = sparsegpt(jnp.asarray(kernel, jnp.bfloat16), gram(x), 0.5)
    assert pruned.dtype == jnp.bfloat16
    pruned = np.asarray(pruned, np.float32)
    assert np.isfinite(pruned).all() and not pruned[[2, 7]].any()


class Net(nn.Module):
    """Three layers, named so that their order is not that of their names."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(16, name="z")(x))
        x = nn.relu(nn.Dense(16, name="a")(x))
        return nn.Dense(4, name="m")(x)


def net():
    batches = [RNG.normal(size=(20, 8)).astype(np.float32) for _ in range(3)]
    params = Net().init(jax.random.key(0), batches[0])["params"]
    return params, batches, linen_inputs(lambda p, batch: Net().apply({"params": p}, batch))


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_layers_see_what_pruned_layers_leave(method):
    params, batches, inputs_of = net()
    pruned, masks = prune_layers(params, inputs_of, batches, 0.5, method=method)
    x = np.concatenate(batches)
    for name in ("z", "a", "m"):
        kernel = np.asarray(params[name]["kernel"])
        mask, weights = (np.asarray(t[name]["kernel"]) for t in (masks, pruned))
        assert mask.sum() == kernel.size // 2
        if method == "magnitude":
            expected = np.abs(kernel) >= np.sort(np.abs(kernel).ravel())[kernel.size // 2]
            np.testing.assert_array_equal(mask, expected)
        else:
            function = {"wanda": wanda, "sparsegpt": sparsegpt}[method]
            again, _ = function(jnp.asarray(kernel), gram(x), 0.5)
            np.testing.assert_allclose(weights, again, atol=1e-4)
        x = np.maximum(x @ weights + np.asarray(params[name]["bias"]), 0)
        np.testing.assert_array_equal(pruned[name]["bias"], params[name]["bias"])


def test_weights_of_outputs_by_inputs_and_chosen_layers():
    """As in Equinox: the transposed kernel gives the transposed mask."""
    params, batches, inputs_of = net()
    fields = {"method": "wanda", "sparsity_type": "2:4", "layers": ["a/kernel"]}
    pruned, masks = prune_layers(params, inputs_of, batches, 0.5, **fields)
    assert [*masks] == ["a"]
    turned = {"a": {"kernel": params["a"]["kernel"].T}}

    def turned_inputs(p, batch):
        return {"a/kernel": inputs_of(params, batch)["a/kernel"]}

    other, flipped = prune_layers(turned, turned_inputs, batches, 0.5, input_axis=-1, **fields)
    np.testing.assert_array_equal(flipped["a"]["kernel"], masks["a"]["kernel"].T)
    np.testing.assert_array_equal(other["a"]["kernel"], pruned["a"]["kernel"].T)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "obs"}, "method is 'obs'; expected one of magnitude, wanda, sparsegpt"),
        ({"layers": ["b/kernel"]}, "no kernel with inputs at 'b/kernel'; there"),
        ({"sparsity_type": "2x2"}, "sparsity_type is '2x2'; expected 'unstructured' or N:M"),
        ({"sparsity_type": "2:5", "sparsity": 0.6}, "is no multiple of 5"),
        ({"sparsity_type": "2:4", "sparsity": 0.9}, "sparsity is 0.9, .* '2:4' removes 0.5"),
        ({"sparsity": 1.0}, "sparsity is 1.0; expected"),
        ({"sparsity": -0.1}, "sparsity is -0.1; expected"),
    ],
)
def test_what_cannot_be_is_named(fields, message):
    params, batches, inputs_of = net()
    with pytest.raises(ConfigError, match=message):
        prune_layers(params, inputs_of, batches, **({"sparsity": 0.5} | fields))
    with pytest.raises(ConfigError, match="inputs_of gives no inputs of any layer"):
        prune_layers(params, lambda params, batch: {}, batches, 0.5)
    with pytest.raises(ConfigError, match="no calibration batches"):
        prune_layers(params, inputs_of, [], 0.5)


@pytest.mark.parametrize("function", [wanda, sparsegpt])
def test_kernels_and_sparsities_that_do_not_fit(function):
    x, kernel = case(10)
    with pytest.raises(ConfigError, match=r"axis -2 of 'kernel' with shape \(10, 5\) is no mult"):
        function(jnp.asarray(kernel), gram(x), 0.5, PATTERN)
    for value in (-0.1, 1.0):
        with pytest.raises(ConfigError, match=f"sparsity is {value}; expected"):
            function(jnp.asarray(kernel), gram(x), value)


def test_inputs_by_name_and_layers_of_other_classes():
    class Mixed(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Linear(2, name="own")(nn.Dense(3, name="dense")(inputs=x))

    x = jnp.asarray(RNG.normal(size=(6, 4)), jnp.float32)
    params = Mixed().init(jax.random.key(0), x)["params"]

    def apply(params, batch):
        return Mixed().apply({"params": params}, batch)

    assert [*linen_inputs(apply)(params, x)] == ["dense/kernel"]
    inputs = linen_inputs(apply, kinds=(Linear,))(params, x)
    np.testing.assert_array_equal(inputs["dense/kernel"], x)
    hidden = x @ params["dense"]["kernel"] + params["dense"]["bias"]
    np.testing.assert_allclose(inputs["own/kernel"], hidden, rtol=1e-6, atol=1e-6)
    _, masks = prune_layers(params, linen_inputs(apply, (Linear,)), [x], 0.5, method="wanda")
    assert int(masks["own"]["kernel"].sum()) == 4  # of 3 inputs of 2 outputs, 1 each goes


def test_layers_inside_of_a_scan_are_not_seen():
    class Cell(nn.Module):
        @nn.compact
        def __call__(self, state, x):
            state = nn.Dense(3, name="inner")(state + x)
            return state, state

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            split = {"params": False}
            cell = nn.scan(Cell, variable_broadcast="params", split_rngs=split)(name="cell")
            return nn.Dense(2, name="out")(cell(jnp.zeros(3), x)[1])

    x = jnp.ones((4, 3))
    params = Net().init(jax.random.key(0), x)["params"]
    inputs_of = linen_inputs(lambda params, batch: Net().apply({"params": params}, batch))
    _, masks = prune_layers(params, inputs_of, [x], 0.5, method="wanda")
    assert [*masks] == ["out"]
