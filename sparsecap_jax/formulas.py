"""Formulas that the models of Linen and of NumPy share; arrays of either go in and come out."""

import math

import numpy as np
from jaxtyping import Float

from sparsecap_jax.array_modules import array_module
from sparsecap_jax.types import ArrayLike

WAVE_LENGTH = 1000.0  # ratio of the longest to the shortest wave of the trigonometric embedding
MIN_OFFSET = 1e-3  # least relative offset of two centres, so that its log is finite
MIN_WEIGHT = 1e-6  # least geometry weight, so that its log is finite


def lstm_state(
    gates: Float[ArrayLike, "... G"], cell: Float[ArrayLike, "... H"]
) -> tuple[Float[ArrayLike, "... H"], Float[ArrayLike, "... H"]]:
    """Return the hidden and the cell state that follow `cell`.

    `gates` are `[..., 4H]`: input, forget, cell and output gates before their non-linearities.
    """
    xp = array_module(gates)
    i, f, g, o = xp.split(gates, 4, axis=-1)
    cell = xp.sigmoid(f) * cell + xp.sigmoid(i) * xp.tanh(g)
    return xp.sigmoid(o) * xp.tanh(cell), cell


def sinusoids(length: int, width: int) -> np.ndarray:
    """Return positions `[length, width]` float32, sines in even and cosines in odd columns.

    Vaswani et al. 2017, section 3.5: column pair i has the wave length 2 pi 10000^(2i/width).
    """
    rates = np.exp(np.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = np.arange(length)[:, None] * rates
    waves = np.stack([np.sin(angles), np.cos(angles)], axis=-1)
    return waves.reshape(length, -1).astype(np.float32)


def box_geometry(boxes: Float[ArrayLike, "B R 4"]) -> Float[ArrayLike, "B R R 4"]:
    """Return the geometry of all pairs of boxes: log offsets of centres, log ratios of sizes.

    Entry (i, j) is log|dx / w_i|, log|dy / h_i|, log(w_i / w_j), log(h_i / h_j), offsets clamped
    below at 0.001. Coordinates are divided by the image's size, yet widths and heights get +1 as
    if they were pixels: the reference does so, and its published weights are trained on it.
    """
    xp = array_module(boxes)
    x_min, y_min, x_max, y_max = xp.split(boxes, 4, axis=-1)  # [B, R, 1] each
    logs = []
    for low, high in ((x_min, x_max), (y_min, y_max)):
        centre, size = (low + high) * np.float32(0.5), (high - low) + np.float32(1.0)
        offset = xp.abs((centre - centre.swapaxes(1, 2)) / size)
        log_offset = xp.log(xp.maximum(offset, np.float32(MIN_OFFSET)))
        logs.append((log_offset, xp.log(size / size.swapaxes(1, 2))))
    (dx, dw), (dy, dh) = logs
    return xp.stack([dx, dy, dw, dh], axis=-1)


def trigonometric(
    geometry: Float[ArrayLike, "B R R 4"], size: int = 64
) -> Float[ArrayLike, "B R R G"]:
    """Embed geometry in sines and cosines of `size / 8` wave lengths each.

    Arguments reach several hundred, so float32 leaves errors of up to 1e-3, as in the reference.
    """
    xp, waves = array_module(geometry), size // 8
    rates = (WAVE_LENGTH ** (-np.arange(waves) / waves)).astype(np.float32)
    angles = (np.float32(100.0) * geometry)[..., None] * rates
    angles = angles.reshape(*geometry.shape[:-1], -1)
    return xp.concatenate([xp.sin(angles), xp.cos(angles)], axis=-1)
