"""The picture of attention, and the heat maps it shows."""

import numpy as np
import pytest
from PIL import Image

from sparsecap_jax.captioning.attention_plot import attention_picture, heat_map
from sparsecap_jax.captioning.batches import Caption
from sparsecap_jax.errors import DataError

BOXES = np.array([[0.0, 0.0, 0.5, 1.0], [0.25, 0.5, 1.0, 1.0]])


def test_weights_add_up_where_boxes_overlap():
    found = heat_map(np.array([0.6, 0.2], np.float32), BOXES, 4)
    expected = np.array(
        [[0.6, 0.6, 0, 0], [0.6, 0.6, 0, 0], [0.6, 0.8, 0.2, 0.2], [0.6, 0.8, 0.2, 0.2]]
    )
    np.testing.assert_allclose(found, expected / 0.8, rtol=1e-6)


def test_the_picture_is_light_where_the_word_was_seen(tmp_path):
    Image.new("RGB", (60, 60), (0, 200, 0)).save(tmp_path / "scene.png")
    weights = np.array([[1.0, 0.0]], np.float32)
    caption = Caption("dog", -1.0, (5, 3), -1.0, weights)
    attention_picture(tmp_path / "a.png", caption, BOXES, tmp_path / "scene.png", columns=1)
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    rows, width = slice(pixels.shape[0] // 2, pixels.shape[0] * 3 // 4), pixels.shape[1]
    left, right = pixels[rows, width // 4], pixels[rows, width * 3 // 4]
    np.testing.assert_array_equal(left, np.broadcast_to([0, 200, 0], left.shape))
    assert (np.abs(right - [0, 50, 0]) <= 2).all()


@pytest.mark.parametrize(
    ("weights", "picture", "message"),
    [
        (None, None, r"attention: found None, expected \[words, 2\]"),
        (np.ones((1, 3), np.float32), None, r"attention: found \(1, 3\), expected"),
        (np.ones((1, 2), np.float32), "none.png", r"none\.png: no such file"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path, weights, picture, message):
    caption = Caption("dog", -1.0, (5, 3), -1.0, weights)
    with pytest.raises(DataError, match=message):
        attention_picture(tmp_path / "a.png", caption, BOXES, picture and tmp_path / picture)
    assert not (tmp_path / "a.png").exists()


def test_a_caption_without_words_is_refused(tmp_path):
    caption = Caption("", -1.0, (3,), -1.0, np.ones((1, 2), np.float32))
    with pytest.raises(DataError, match="the caption is empty"):
        attention_picture(tmp_path / "a.png", caption, BOXES)
