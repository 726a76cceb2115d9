"""Picture of a captioner's attention, word by word."""

import pathlib

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sparsecap_jax.captioning.batches import Caption
from sparsecap_jax.errors import DataError
from sparsecap_jax.files import save_figure
from sparsecap_jax.photos.images import Photo, open_photo

_GRID = 128  # points of a heat map each way


def attention_picture(
    path: str | pathlib.Path,
    caption: Caption,
    boxes: Float[np.ndarray, "R 4"],
    picture: Photo | None = None,
    *,
    columns: int = 4,
) -> None:
    """Draw a panel for each word: weights of the regions as light, the heaviest region framed.

    Args:
        path: PNG to write.
        caption: one with attention, `Captioner.caption(..., attention=True)`.
        boxes: `[R, 4]`, the image's regions as corners divided by width and height.
        picture: the picture, as `open_photo` takes it; by default regions are drawn on white.
        columns: panels side by side.

    Raises:
        DataError: the caption has no attention or no words, the boxes are of another image, or
            the picture cannot be read.
    """
    if caption.attention is None or caption.attention.shape[1:] != (len(boxes),):
        shape = None if caption.attention is None else caption.attention.shape
        raise DataError(f"attention: found {shape}, expected [words, {len(boxes)}] for the boxes")
    words = caption.text.split()
    if not words:
        raise DataError("attention: the caption is empty; expected one with words")
    background = np.full((_GRID, _GRID, 3), 255, np.uint8)
    if picture is not None:
        background = np.asarray(open_photo(picture))
    rows = -(-len(words) // columns)
    height, width = background.shape[:2]
    size = 2.6 * columns, (2.6 * height / width + 0.3) * rows
    figure = Figure(figsize=size, layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis, word, weights in zip(axes, words, caption.attention, strict=False):
        shade = 1 - heat_map(weights, boxes, _GRID)
        for layer in (background, np.dstack([np.zeros((_GRID, _GRID, 3)), 0.75 * shade])):
            axis.imshow(layer, extent=(0, 1, 1, 0), aspect=height / width)
        x1, y1, x2, y2 = boxes[weights.argmax()]
        axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, lw=1.2, ec="gold"))
        axis.set(title=f"{word} ({weights.max():.2f})", xlim=(0, 1), ylim=(1, 0))
    for axis in axes:
        axis.axis("off")
    save_figure(figure, path)


def heat_map(
    weights: Float[np.ndarray, " R"], boxes: Float[np.ndarray, "R 4"], size: int
) -> Float[np.ndarray, "N N"]:
    """Sum the weights of the regions at each place and scale the largest sum to 1.

    Args:
        weights: weights of the regions.
        boxes: corners x1, y1, x2, y2 divided by width and height.
        size: number N of places each way; row i stands for y = (i + 0.5) / N.
    """
    places = (np.arange(size) + 0.5) / size
    inside_x = (boxes[:, :1] <= places) & (places <= boxes[:, 2:3])
    inside_y = (boxes[:, 1:2] <= places) & (places <= boxes[:, 3:])
    heat = np.einsum("r,ry,rx->yx", np.float64(weights), inside_y, inside_x)
    return heat / max(heat.max(), 1e-9)
