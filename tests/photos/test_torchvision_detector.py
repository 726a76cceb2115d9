"""The worked example of a detector of one's own; needs the extra `torchvision`."""

import numpy as np
import pytest
from PIL import Image

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.photos.extractors import FasterRCNN, make_extractor

try:
    import torchvision  # noqa: F401
except ImportError:
    INSTALLED = False
else:
    INSTALLED = True


@pytest.mark.skipif(INSTALLED, reason="torchvision is installed; the error says it is not")
def test_without_torchvision_there_is_one_clear_error():
    message = (
        r"^extractor 'torchvision' needs (torch|torchvision), which is not installed: "
        r"pip install 'sparsecap_jax\[torchvision\]'$"
    )
    with pytest.raises(ConfigError, match=message):
        make_extractor("torchvision")


def test_large_photos_are_shrunk_before_they_reach_the_detector():
    photo = Image.new("RGB", (8000, 1000))
    assert FasterRCNN.shrink(photo).size == (2666, 333) and photo.size == (8000, 1000)
    assert FasterRCNN.shrink(Image.new("RGB", (640, 480))).size == (640, 480)


@pytest.mark.skipif(not INSTALLED, reason="torchvision is not installed (extra torchvision)")
def test_random_weights_give_regions_of_the_right_form():
    extractor = make_extractor("torchvision", weights="random", max_regions=4, min_score=0.0)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8))
    (regions,) = extractor([photo])
    assert 1 <= len(regions.features) <= 4
    assert regions.features.shape == (len(regions.boxes), 1024)
    assert (regions.boxes >= 0).all() and (regions.boxes <= 1).all()
    assert (regions.boxes[:, 2:] >= regions.boxes[:, :2]).all()
