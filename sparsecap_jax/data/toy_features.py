"""Region features of toy scenes: noisy attributes behind a fixed random projection.

All numbers are integers until the end, and small enough for float32 to hold every partial sum of
the projection exactly, so the features are the same to the bit whatever order they are added in.
"""

import functools

import numpy as np
from jaxtyping import Float

from sparsecap_jax.data.toy_regions import CHANNELS, SPATIAL, list_regions
from sparsecap_jax.data.toy_world import HEIGHT, WIDTH, Draws, Scene

FEATURE_SIZE = 2048
GRID = 512  # features are multiples of 1/GRID, below 4: exact in float16
OFFSET = 96  # leaves about 60% of the features at 0
PROJECTION_KEY = (2048, 0, 3)  # one projection for all scenes of all seeds


@functools.lru_cache(maxsize=1)
def _projection() -> np.ndarray:
    """Return float32 `[channels, FEATURE_SIZE]` of whole numbers in [-3, 3]."""
    noise = Draws(*PROJECTION_KEY).triangular(len(CHANNELS), FEATURE_SIZE)
    return ((noise + 36) // 73).astype(np.float32)


@functools.lru_cache(maxsize=1)
def _grid() -> np.ndarray:
    """Return all values that a feature can have: float16 `[2048]`, multiples of 1/GRID."""
    return (np.arange(2048, dtype=np.float32) / np.float32(GRID)).astype(np.float16)


def scene_features(
    scene: Scene, draws: Draws, boxes_only: bool = False
) -> tuple[Float[np.ndarray, "R 2048"], Float[np.ndarray, "R 4"]]:
    """Compute the features and boxes that a detector would find in a scene.

    Features are `relu(attributes @ projection + noise)` on a grid of 1/GRID.

    Args:
        scene: the scene.
        draws: source of all noise and of the distractors.
        boxes_only: whether features leave out places, sizes and relations, which boxes alone show
            then.

    Returns:
        Features float16 `[R, 2048]`, 0 or more, and boxes float32 `[R, 4]`, corners x1, y1, x2, y2
        divided by picture width and height; R from 10 to 20.
    """
    regions = list_regions(scene, draws)
    boxes = np.array([box for box, _ in regions], np.float32)
    boxes /= np.array([WIDTH, HEIGHT, WIDTH, HEIGHT], np.float32)
    attributes = np.stack([attributes.values for _, attributes in regions])
    if boxes_only:
        attributes[:, [channel for (block, _), channel in CHANNELS.items() if block in SPATIAL]] = 0
    attributes += draws.triangular(*attributes.shape) // 8  # standard deviation 0.2 UNIT
    # Whole numbers: |attributes| < 256, |projection| <= 3, fewer than 128 channels: below 2 ** 17.
    # einsum: a BLAS call for so little work loses more to its threads than it gains.
    signal = np.einsum("rc,cd->rd", attributes.astype(np.float32), _projection())
    raw = signal.astype(np.int32) + draws.triangular(*signal.shape) - OFFSET
    return _grid().take(raw.clip(0, 2047)), boxes
