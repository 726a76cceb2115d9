"""Regions without a detector: cells of a grid, and the windows of a spatial pyramid."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def grid_boxes(rows: int, columns: int) -> Float[np.ndarray, "R 4"]:
    """Return boxes of equal cells, row by row: x1, y1, x2, y2 divided by width and height."""
    y, x = np.divmod(np.arange(rows * columns), columns)
    corners = x / columns, y / rows, (x + 1) / columns, (y + 1) / rows
    return np.stack(corners, axis=1).astype(np.float32)


def window_boxes(grid: int, pyramid: Sequence[int]) -> Float[np.ndarray, "R 4"]:
    """Return boxes of the pyramid's windows, level by level, then of a grid's cells.

    `pyramid` holds the windows on each side of each level, `grid` the cells on each side or 0.
    """
    sides = [*pyramid, grid] if grid else list(pyramid)
    return np.concatenate([grid_boxes(side, side) for side in sides])


def pooling_weights(
    boxes: Float[np.ndarray, "R 4"], height: int, width: int
) -> Float[np.ndarray, "R N"]:
    """Return weights that average a `height x width` map over relative boxes; rows sum to 1.

    A cell counts by the area that it shares with the box; x1 < x2 and y1 < y2.
    """
    across = _shares(boxes[:, 0], boxes[:, 2], width)
    down = _shares(boxes[:, 1], boxes[:, 3], height)
    return np.einsum("rh,rw->rhw", down, across).reshape(len(boxes), -1).astype(np.float32)


def _shares(low: np.ndarray, high: np.ndarray, cells: int) -> np.ndarray:
    """Return the share of each interval in each of `cells` equal cells of [0, 1]."""
    edges = np.arange(cells + 1) / cells
    low, high = low[:, None].astype(np.float64), high[:, None].astype(np.float64)
    overlap = np.minimum(high, edges[1:]) - np.maximum(low, edges[:-1])
    return np.maximum(overlap, 0) / (high - low)
