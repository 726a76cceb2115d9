"""Types that travel between the rooms of the package.

Shape letters used everywhere: B images, S captions per image, K rows per image (captions, samples
or beams), R regions, D feature width, T tokens, V vocabulary.
"""

from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Int

PyTree = Any
ArrayLike = Any  # an array of JAX or NumPy
Size = Any  # an int, or a size that an exported graph leaves open


class Regions(NamedTuple):
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

    def replace(self, **changes: Any) -> "Regions":
        """Return a copy with other values of some fields."""
        return self._replace(**changes)


class Batch(NamedTuple):
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

    def replace(self, **changes: Any) -> "Batch":
        """Return a copy with other values of some fields."""
        return self._replace(**changes)
