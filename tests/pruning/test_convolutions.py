"""Pruning of convolutions and embeddings from calibration batches, against slow versions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from slow_pruning import slow_patches, slow_sparsegpt, slow_wanda

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning.layer_inputs import Images, gram_of
from sparsecap_jax.pruning.layerwise import linen_inputs, prune_layers
from sparsecap_jax.pruning.structures import NofM

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


# Layers of 4 channels and 6 outputs, and the zeros that the slow version pads an image with.
CASES = {
    "one axis": ({"kernel_size": 3}, (7,), [(1, 1)]),
    "causal": ({"kernel_size": 3, "kernel_dilation": 2, "padding": "CAUSAL"}, (7,), [(4, 0)]),
    "two axes": ({"kernel_size": (3, 2)}, (5, 6), [(1, 1), (0, 1)]),
    "valid, strides": (
        {"kernel_size": (3, 2), "strides": (2, 1), "padding": "VALID"},
        (6, 5),
        [(0, 0), (0, 0)],
    ),
    "same, strides": ({"kernel_size": (3, 3), "strides": 2}, (5, 6), [(1, 1), (0, 1)]),
    "pairs": (
        {"kernel_size": (2, 3), "padding": [(0, 2), 1]},
        (4, 5),
        [(0, 2), (1, 1)],
    ),
    "kernel dilation": (
        {"kernel_size": (2, 3), "kernel_dilation": (3, 1), "padding": 1},
        (6, 4),
        [(1, 1), (1, 1)],
    ),
    "input dilation": (
        {"kernel_size": (3, 2), "input_dilation": (2, 1), "padding": 0},
        (4, 5),
        [(0, 0), (0, 0)],
    ),
    "groups": ({"kernel_size": (2, 2), "feature_group_count": 2}, (4, 3), [(0, 1), (0, 1)]),
    "three axes": ({"kernel_size": (2, 1, 3), "padding": "VALID"}, (3, 2, 4), [(0, 0)] * 3),
}


def rows_of(layer, images, padding, mode="constant"):
    """Patches of a layer by the slow version, of all images: `[N, G, I]`."""
    window = np.atleast_1d(layer.kernel_size).tolist()

    def spread(value):
        return [value] * len(window) if isinstance(value, int) else list(value)

    moves = [spread(getattr(layer, name)) for name in ("strides", "input_dilation")]
    fields = moves[0], padding, moves[1], spread(layer.kernel_dilation), layer.feature_group_count
    return np.concatenate([slow_patches(image, window, *fields) for image in images])


@pytest.mark.parametrize("case", sorted(CASES))
def test_patches(case):
    """They are the slow version's, and times the kernel they are the layer's outputs."""
    fields, space, padding = CASES[case]
    layer, images = nn.Conv(6, **fields), normal(3, *space, 4)
    params = layer.init(jax.random.key(0), images)["params"]
    inputs_of = linen_inputs(lambda params, batch: layer.apply({"params": params}, batch))
    (inputs,) = inputs_of(params, images).values()
    shape = params["kernel"].shape
    rows = np.asarray(inputs.patches(shape[:-2]), float)
    np.testing.assert_array_equal(rows, rows_of(layer, images, padding).astype(np.float32))
    outputs = np.asarray(layer.apply({"params": params}, images)) - params["bias"]
    groups = rows.shape[1]
    matrices = np.asarray(params["kernel"], float).reshape(-1, groups, 6 // groups)
    product = np.einsum("ngi,igo->ngo", rows, matrices).reshape(outputs.shape)
    np.testing.assert_allclose(outputs, product, atol=1e-5)
    gram = np.einsum("ngi,ngj->gij", rows, rows)
    np.testing.assert_allclose(gram_of(inputs, shape), gram, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("padding", "mode"), [("CIRCULAR", "wrap"), ("REFLECT", "reflect")])
def test_padding_that_is_no_zeros(padding, mode):
    layer, images = nn.Conv(6, (3, 4), padding=padding), normal(2, 5, 6, 4)
    params = layer.init(jax.random.key(0), images)["params"]
    (inputs,) = linen_inputs(lambda p, x: layer.apply({"params": p}, x))(params, images).values()
    padded = np.pad(images, [(0, 0), (1, 1), (1, 2), (0, 0)], mode=mode)
    expected = rows_of(layer, padded, [(0, 0), (0, 0)])
    np.testing.assert_array_equal(inputs.patches((3, 4)), expected.astype(np.float32))


def test_images_of_any_number_of_axes_before():
    layer, images = nn.Conv(6, (2, 2)), normal(2, 3, 4, 5, 4)
    params = layer.init(jax.random.key(0), images)["params"]
    inputs_of = linen_inputs(lambda p, x: layer.apply({"params": p}, x))
    grams = [
        gram_of(inputs_of(params, batch)["kernel"], (2, 2, 4, 6))
        for batch in (images, images.reshape(6, 4, 5, 4))
    ]
    np.testing.assert_allclose(*grams, rtol=1e-6)
    one = [gram_of(inputs_of(params, image)["kernel"], (2, 2, 4, 6)) for image in images[0]]
    other = gram_of(inputs_of(params, images[0])["kernel"], (2, 2, 4, 6))
    np.testing.assert_allclose(sum(one), other, rtol=1e-5, atol=1e-5)


class Net(nn.Module):
    """An embedding, a convolution in groups, and a convolution that runs twice."""

    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(7, 4, name="words")(ids)
        x = nn.relu(nn.Conv(8, (3, 2), strides=(1, 2), feature_group_count=2, name="first")(x))
        again = nn.Conv(8, (1, 3), padding="VALID", name="again")
        return again(nn.relu(again(x)))


def net():
    batches = [RNG.integers(-3, 5, (2, 4, 12)) for _ in range(3)]  # rows 2 and 3 by negative ids
    params = Net().init(jax.random.key(0), batches[0])["params"]
    return params, batches, linen_inputs(lambda params, ids: Net().apply({"params": params}, ids))


@pytest.mark.parametrize("sparsity_type", ["unstructured", "2:4"])
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_layer_by_layer(method, sparsity_type):
    params, batches, inputs_of = net()
    pattern = NofM(2, 4, -2) if sparsity_type == "2:4" else None
    layers = ["first/kernel", "again/kernel"]
    if pattern:  # channels in groups of two
        layers = layers[1:]
        with pytest.raises(ConfigError, match=r"first/kernel: .* shape \(3, 2, 2, 8\) is no mult"):
            prune_layers(
                params, inputs_of, batches, 0.5, sparsity_type="2:4", layers=["first/kernel"]
            )
    pruned, masks = prune_layers(
        params, inputs_of, batches, 0.5, method=method, sparsity_type=sparsity_type, layers=layers
    )
    ids = np.concatenate(batches)
    x = np.asarray(params["words"]["embedding"])[ids]
    for name in ("first", "again"):
        kernel = np.asarray(params[name]["kernel"])
        layer = {
            "first": nn.Conv(8, (3, 2), strides=(1, 2), feature_group_count=2),
            "again": nn.Conv(8, (1, 3), padding="VALID"),
        }[name]

        def apply(x, layer=layer, name=name):
            return np.maximum(layer.apply({"params": pruned[name]}, x), 0)

        before, groups = [x], layer.feature_group_count
        if name == "again":  # what its first run with the dense kernel leaves, too
            dense = layer.apply({"params": params["again"]}, x)
            before.append(np.maximum(dense, 0))
        padding = [(1, 1), (0, 0)] if name == "first" else [(0, 0)] * 2
        rows = np.concatenate([rows_of(layer, images, padding) for images in before])
        if f"{name}/kernel" in layers:
            matrices = kernel.reshape(-1, groups, 8 // groups)
            for group in range(groups):
                matrix = matrices[:, group]
                if method == "wanda":
                    mask = slow_wanda(matrix, rows[:, group], 0.5, pattern)
                    expected = matrix * mask
                else:
                    expected, mask = slow_sparsegpt(matrix, rows[:, group], 0.5, pattern, 128)
                found = np.asarray(masks[name]["kernel"]).reshape(matrices.shape)[:, group]
                np.testing.assert_array_equal(found, mask)
                weights = np.asarray(pruned[name]["kernel"]).reshape(matrices.shape)[:, group]
                np.testing.assert_allclose(weights, expected, atol=1e-4)
        x = apply(x)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_embeddings(method):
    """With one-hot inputs in full, whose damping counts for rows that are never seen alone."""
    params, batches, inputs_of = net()
    layers = ["words/embedding"]
    pruned, masks = prune_layers(params, inputs_of, batches, 0.4, method=method, layers=layers)
    table, ids = np.asarray(params["words"]["embedding"], float), np.concatenate(batches).ravel()
    one_hot = np.eye(7)[ids]
    counts = one_hot.sum(0)
    seen = counts + 0.01 * counts.mean()
    mask = np.ones((7, 4))
    if method == "wanda":
        mask = slow_wanda(table, np.sqrt(np.diag(seen)), 0.4)
        assert mask.sum(0).tolist() == [7 - int(0.4 * 7)] * 4
    else:
        # Optimal brain surgery with the whole Hessian: nothing is corrected.
        hessian = one_hot.T @ one_hot + 0.01 * counts.mean() * np.eye(7)
        errors = table**2 / np.diagonal(np.linalg.inv(hessian))[:, None]
        mask.ravel()[np.argsort(errors.ravel())[: int(0.4 * 28)]] = 0
    np.testing.assert_array_equal(masks["words"]["embedding"], mask)
    np.testing.assert_allclose(pruned["words"]["embedding"], table * mask, rtol=1e-6)
    assert [*masks] == ["words"]


def test_rows_that_are_never_seen_go_by_their_magnitude():
    table = {"embedding": jnp.asarray([[5.0, 1.0], [2.0, 3.0], [0.5, 0.6], [4.0, 0.1]])}

    def ids_of(params, batch):
        return {"embedding": batch}

    ids = jnp.asarray([2, 2, 2, -1, 9])  # what is no row counts nowhere
    _, masks = prune_layers(table, ids_of, [ids], 0.5, layers=["embedding"])
    np.testing.assert_array_equal(masks["embedding"], [[1, 0], [0, 0], [1, 1], [1, 0]])


def test_tables_that_are_outputs_too_and_masked_kernels_are_not_seen():
    class Tied(nn.Module):
        @nn.compact
        def __call__(self, ids):
            words = nn.Embed(5, 4, name="words")
            x = nn.Conv(4, (2,), mask=jnp.ones((2, 4, 4)), name="masked")(words(ids))
            return words.attend(nn.Dense(4, name="dense")(x))

    ids = jnp.asarray([[0, 1, 2]])
    params = Tied().init(jax.random.key(0), ids)["params"]
    inputs_of = linen_inputs(lambda params, ids: Tied().apply({"params": params}, ids))
    assert [*inputs_of(params, ids)] == ["dense/kernel"]


def test_weights_of_outputs_by_channels():
    """As in Equinox, `[O, C, *window]`: the moved kernel gives the moved mask; tables stay."""
    images, ids = jnp.asarray(normal(3, 5, 6, 4)), jnp.asarray(RNG.integers(0, 7, 20))
    kernel, table = normal(2, 3, 4, 6), normal(7, 3)

    def inputs_of(params, batch):
        images = Images(batch[0], strides=(2, 1), padding=((1, 0), (0, 2)))
        return {"conv": images, "table": [batch[1], batch[1][:5]]}

    trees = {"conv": kernel, "table": table}, {"conv": kernel.transpose(3, 2, 0, 1), "table": table}
    pairs = [
        prune_layers(tree, inputs_of, [(images, ids)], 0.5, input_axis=axis)
        for tree, axis in zip(trees, (-2, -1), strict=True)
    ]
    for one, other in zip(*pairs, strict=True):
        np.testing.assert_array_equal(other["conv"], one["conv"].transpose(3, 2, 0, 1))
        np.testing.assert_array_equal(other["table"], one["table"])
    rows = rows_of(nn.Conv(6, (2, 3), strides=(2, 1)), images, [(1, 0), (0, 2)])
    expected, mask = slow_sparsegpt(kernel.reshape(24, 6), rows[:, 0], 0.5, None, 128)
    np.testing.assert_array_equal(pairs[0][1]["conv"].reshape(24, 6), mask)
    np.testing.assert_allclose(pairs[0][0]["conv"].reshape(24, 6), expected, atol=1e-4)


def test_corrections_lower_the_error_of_a_convolution():
    layer, images = nn.Conv(8, (3, 3)), normal(8, 8, 8, 6) + normal(8, 1, 1, 6)
    params = layer.init(jax.random.key(0), images)["params"]
    outputs, errors = layer.apply({"params": params}, images), {}
    inputs_of = linen_inputs(lambda params, batch: layer.apply({"params": params}, batch))
    for method in ("magnitude", "wanda", "sparsegpt"):
        pruned, masks = prune_layers(params, inputs_of, [images], 0.6, method=method)
        assert int(masks["kernel"].sum()) in (432 - int(0.6 * 432), 432 - 8 * int(0.6 * 54))
        change = layer.apply({"params": pruned}, images) - outputs
        errors[method] = float(jnp.sum(jnp.square(change)))
    assert errors["sparsegpt"] < min(errors["wanda"], errors["magnitude"])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (Images(normal(2, 5, 5, 3)), r"\(2, 2, 4, 6\) does not take images of 3 channels in 1 gr"),
        (Images(normal(2, 5, 5, 20), groups=5), r"images of 20 channels in 5 groups"),
        (normal(2, 16), r"does not take inputs of shape \(2, 16\), float32; .* are Images"),
        (RNG.integers(0, 2, 5), r"does not take inputs of shape \(5,\), int"),
        ([Images(normal(2, 5, 5, 4)), Images(normal(2, 5, 5, 8), groups=2)], "differ in their gr"),
    ],
)
def test_inputs_that_do_not_fit(inputs, message):
    with pytest.raises(ConfigError, match=message):
        gram_of(inputs, (2, 2, 4, 6))
