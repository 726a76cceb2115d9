"""What an image looks like to a model, how stores hand it out, and the checks that all share."""

import dataclasses
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from sparsecap_jax.data.records import ImageId
from sparsecap_jax.errors import DataError

# Relative boxes may leave [0, 1] by rounding, and by detectors that do not clip at the border.
BOX_TOLERANCE = 0.01


@dataclasses.dataclass(frozen=True)
class RegionFeatures:
    """What an image looks like to a model.

    Attributes:
        features: float32 `[R, D]`, R >= 1.
        boxes: float32 `[R, 4]`, corners x1, y1, x2, y2 divided by image width and height, or None.
        fc: float32 `[D]`, one vector for the whole image.
    """

    features: Float[np.ndarray, "R D"]
    boxes: Float[np.ndarray, "R 4"] | None
    fc: Float[np.ndarray, " D"]

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the arrays take."""
        boxes = 0 if self.boxes is None else self.boxes.nbytes
        return self.features.nbytes + boxes + self.fc.nbytes


@runtime_checkable
class FeatureStore(Protocol):
    """Region features by image id; safe to read from several threads."""

    feature_size: int

    def __getitem__(self, image_id: ImageId) -> RegionFeatures:
        """Read one image; DataError when it is absent or cannot be used."""

    def num_regions(self, image_id: ImageId) -> int:
        """Number of regions R of one image, without reading its features where possible."""

    def check(self, image_ids: Iterable[ImageId]) -> None:
        """Raise one DataError that tells of every id without features (contents are not read)."""


def validated(
    features: np.ndarray,
    boxes: np.ndarray | None,
    fc: np.ndarray | None,
    feature_size: int,
    names: tuple[str, str, str],
) -> RegionFeatures:
    """Check one image's arrays, as every store does, and convert them to float32.

    Args:
        features: floating `[R, D]`, or a grid `[h, w, D]`, which becomes `[h * w, D]`.
        boxes: floating `[R, 4]` relative corners, or None.
        fc: floating `[D]`, or None for the mean over regions.
        feature_size: the D that is expected.
        names: what to call features, boxes and fc in errors, file or record included.

    Raises:
        DataError: wrong rank, width or type, no regions, NaN or infinity, boxes that do not match.
    """
    features_name, boxes_name, fc_name = names
    if features.ndim not in (2, 3) or features.shape[-1] != feature_size:
        raise DataError(
            f"{features_name}: expected shape [R, {feature_size}] or [h, w, {feature_size}], "
            f"found {list(features.shape)}"
        )
    features = _as_float32(features.reshape(-1, feature_size), features_name)
    if not len(features):
        raise DataError(f"{features_name}: no regions, expected at least one")
    if fc is None:
        fc = features.mean(axis=0, dtype=np.float32)
    elif fc.shape != (feature_size,):
        raise DataError(f"{fc_name}: expected shape [{feature_size}], found {list(fc.shape)}")
    else:
        fc = _as_float32(fc, fc_name)
    if boxes is not None:
        boxes = _check_boxes(boxes, len(features), boxes_name)
    return RegionFeatures(features, boxes, fc)


def _as_float32(array: np.ndarray, where: str) -> np.ndarray:
    """Convert to contiguous float32; anything but finite numbers is an error."""
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, np.float32)
    finite = np.isfinite(array)
    if not finite.all():
        first = np.argwhere(~finite)[0].tolist()
        raise DataError(
            f"{where}: {np.size(finite) - np.count_nonzero(finite)} values are NaN or infinite "
            f"(or too large for float32), the first at {first}"
        )
    return array


def _check_boxes(boxes: np.ndarray, num_regions: int, where: str) -> np.ndarray:
    """Check relative corner boxes `[num_regions, 4]`; values are returned as they are."""
    if boxes.shape != (num_regions, 4):
        raise DataError(
            f"{where}: expected shape [{num_regions}, 4] to match the features, "
            f"found {list(boxes.shape)}"
        )
    boxes = _as_float32(boxes, where)
    outside = ((boxes < -BOX_TOLERANCE) | (boxes > 1 + BOX_TOLERANCE)).any(axis=1)
    if outside.any():
        row = int(outside.argmax())
        raise DataError(
            f"{where}: row {row} is {boxes[row].tolist()}, expected x1, y1, x2, y2 divided by "
            "image width and height, within [0, 1]"
        )
    flipped = (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
    if flipped.any():
        row = int(flipped.argmax())
        raise DataError(f"{where}: row {row} is {boxes[row].tolist()}, expected x1<=x2 and y1<=y2")
    return boxes


def relative_boxes(
    boxes: np.ndarray, width: int | float, height: int | float, where: str
) -> Float[np.ndarray, "R 4"]:
    """Divide corners in pixels by image width and height, as the reference does: clipped to [0, 1].

    Raises:
        DataError: no boxes `[R, 4]`, or a size that is not positive.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise DataError(f"{where}: expected shape [R, 4], found {list(boxes.shape)}")
    if not (width > 0 and height > 0):
        raise DataError(f"{where}: expected a positive image size, found {width} x {height}")
    with np.errstate(invalid="ignore"):
        scaled = boxes.astype(np.float64) / np.array([width, height, width, height], np.float64)
    return np.clip(scaled, 0.0, 1.0).astype(np.float32)
