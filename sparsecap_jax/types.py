"""Types that travel between the rooms of the package.

Shape letters used everywhere: B images, S captions per image, K rows per image (captions, samples
or beams), R regions, D feature width, T tokens, V vocabulary.
"""

from typing import Any, no_type_check

from flax import struct
from jaxtyping import Array, Bool, Float, Int
from numpy import ndarray

PyTree = Any
ArrayLike = Array | ndarray


# JAX and Grain rebuild these pytrees with leaves that are no arrays (None, shapes, shardings), so
# their fields are not checked at run time, not even in tests.
@no_type_check
@struct.dataclass
class Regions:
    """The visual side of a batch, zero-padded to R regions; valid regions come first.

    Attributes:
        features: float32 `[B, R, D]`, region features; exactly 0 where `mask` is False.
        mask: bool `[B, R]`, True for real regions.
        boxes: float32 `[B, R, 4]`, corners x1, y1, x2, y2 divided by image width and height.
        fc: float32 `[B, D]`, one feature vector for the whole image.
    """

    features: Float[ArrayLike, "B R D"]
    mask: Bool[ArrayLike, "B R"]
    boxes: Float[ArrayLike, "B R 4"]
    fc: Float[ArrayLike, "B F"]


@no_type_check
@struct.dataclass
class Batch:
    """One padded batch, a pytree of few fixed shapes.

    Attributes:
        regions: the visual side, see `Regions`.
        tokens: int32 `[B, S, T]`, captions from BOS on, cut to T tokens, PAD after the end.
        token_mask: bool `[B, S, T]`, True for real tokens (BOS and EOS included); all False for
            rows that only fill the batch up.
        index: int32 `[B]`, position of the image in its split; -1 for fill-up rows.
    """

    regions: Regions
    tokens: Int[ArrayLike, "B S T"]
    token_mask: Bool[ArrayLike, "B S T"]
    index: Int[ArrayLike, " B"]
