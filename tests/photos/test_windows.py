"""Windows and their pooling weights, by hand and by brute force."""

import numpy as np
import pytest

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.photos.extractors import Windows, grid_boxes, pooling_weights, window_boxes


def test_sizes_of_windows_and_batches_are_limited():
    Windows(size=8192, batch_size=1)  # 14 windows x 65,536 cells
    Windows(size=320, grid=10, batch_size=655)
    with pytest.raises(ConfigError, match="batch_size is 2, size 8192; expected at most 67108864"):
        Windows(size=8192, batch_size=2)
    with pytest.raises(ConfigError, match="257 windows in 1 levels over 65536 cells"):
        Windows(size=8192, grid=16, pyramid=(1,), batch_size=1)


def test_grid_goes_row_by_row():
    np.testing.assert_allclose(
        grid_boxes(2, 3)[[0, 2, 4]],
        [[0, 0, 1 / 3, 0.5], [2 / 3, 0, 1, 0.5], [1 / 3, 0.5, 2 / 3, 1]],
        atol=1e-7,
    )


def test_pyramid_comes_before_the_grid():
    boxes = window_boxes(7, (1, 2, 3))
    assert len(boxes) == 1 + 4 + 9 + 49
    np.testing.assert_array_equal(boxes[0], [0, 0, 1, 1])
    np.testing.assert_array_equal(boxes[1], [0, 0, 0.5, 0.5])
    np.testing.assert_allclose(boxes[-1], [6 / 7, 6 / 7, 1, 1], atol=1e-7)
    assert len(window_boxes(0, (2,))) == 4


def test_pooling_by_hand():
    boxes = np.array([[0, 0, 0.5, 1], [0, 0, 0.75, 0.5]], np.float32)
    # A map of 2 x 2 cells: the second box holds the upper left cell and half of the upper right.
    np.testing.assert_allclose(
        pooling_weights(boxes, 2, 2), [[0.5, 0, 0.5, 0], [2 / 3, 1 / 3, 0, 0]], atol=1e-6
    )


def test_pooling_is_the_mean_of_a_magnified_map():
    rng = np.random.default_rng(0)
    values = rng.random((5, 4))
    magnified = np.repeat(np.repeat(values, 24, axis=0), 30, axis=1)  # 120 x 120
    corners = rng.integers(0, 60, (6, 2)), rng.integers(61, 120, (6, 2))
    boxes = np.concatenate(corners, axis=1).astype(np.float32) / 120
    pooled = pooling_weights(boxes, 5, 4) @ values.ravel()
    for (x1, y1), (x2, y2), found in zip(*corners, pooled, strict=True):
        assert abs(magnified[y1:y2, x1:x2].mean() - found) < 1e-5
