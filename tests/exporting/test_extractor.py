"""Extractors as ONNX against NumPy's, and the error of rounded weights."""

import json

import numpy as np
import pytest

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.photos.extractors import make_extractor
from sparsecap_jax.photos.images import EXAMPLES, list_photos, open_photo, squeeze

OPTIONS = {
    "lite0": {"size": 320, "grid": 0, "pyramid": [1, 2, 3]},
    "lite2": {"size": 224, "grid": 7, "pyramid": [2], "scale": 2.0},
}
# Mean difference of features by their mean: rounding of float32; 2^-11 of float16's weights, which
# 49 layers make larger; int8.
ERRORS = {"float32": 1e-5, "float16": 0.015, "int8": 0.25}


def run(content, pixels):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(content)
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, {"pixels": pixels}), strict=True))


@pytest.mark.parametrize("form", ERRORS)
@pytest.mark.parametrize("network", OPTIONS)
def test_features_of_photos(network, form):
    package = pytest.importorskip("onnx")
    from sparsecap_jax.exporting.extractor import extractor_bytes

    content, notes = extractor_bytes({"extractor": network, **OPTIONS[network]}, form)
    package.checker.check_model(package.load_from_string(content), full_check=True)
    size, side = OPTIONS[network]["size"], OPTIONS[network]["size"] // 32
    photos = [open_photo(path) for path in list_photos(EXAMPLES)]
    found = run(content, np.stack([squeeze(photo, size) for photo in photos]))
    expected = make_extractor(network, **OPTIONS[network])(photos)
    features = np.stack([image.features for image in expected])
    assert found["features"].shape == features.shape == (3, len(notes["boxes"]), 1280)
    error = np.abs(found["features"] - features).mean() / features.mean()
    assert error < ERRORS[form]
    if form != "float32":
        assert error > 1e-4
    assert found["map"].shape == (3, side, side, 1280)
    scale = OPTIONS[network].get("scale", 1.0)
    np.testing.assert_allclose(scale * found["map"].mean(axis=(1, 2)), found["fc"], atol=1e-5)
    assert json.loads(json.dumps(notes)) == notes
    assert notes["inputs"]["pixels"] == {"shape": ["b", size, size, 3], "dtype": "uint8"}
    np.testing.assert_array_equal(notes["boxes"], expected[0].boxes)


def test_other_extractors_are_refused():
    pytest.importorskip("onnx")
    from sparsecap_jax.exporting.extractor import extractor_bytes

    with pytest.raises(ConfigError, match=r"extractor 'torchvision' cannot be exported; .* lite2"):
        extractor_bytes({"extractor": "torchvision"})
    with pytest.raises(ConfigError, match="weights is 'int4'; expected one of float32"):
        extractor_bytes({"extractor": "lite0", **OPTIONS["lite0"]}, "int4")
