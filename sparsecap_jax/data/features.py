"""Region features of images: their type, the checks that all share, and the base of every store.

The stores themselves are in `sparsecap_jax.data.stores`; `open_store` there finds the right one.
"""

import abc
import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from sparsecap_jax.data.records import ImageId, normalize_id
from sparsecap_jax.errors import ConfigError, DataError

# Relative boxes may leave [0, 1] by rounding, and by detectors that do not clip at the border.
BOX_TOLERANCE = 0.01
_MAX_LISTED = 10  # ids that an error message names, of perhaps 100,000

ImageSizes = Mapping[ImageId, tuple[int, int]]
"""Width and height in pixels by image id."""


@dataclasses.dataclass(frozen=True)
class RegionFeatures:
    """Input of a model for one image.

    Attributes:
        features: float32 `[R, D]`, R >= 1 (float16 inside a cache).
        boxes: float32 `[R, 4]`, corners x1, y1, x2, y2 divided by image width and height, or None.
        fc: float32 `[D]`, one vector for the whole image.
    """

    features: Float[np.ndarray, "R D"]
    boxes: Float[np.ndarray, "R 4"] | None
    fc: Float[np.ndarray, " D"]

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the arrays take."""
        arrays = self.features, self.boxes, self.fc
        return sum(array.nbytes for array in arrays if array is not None)


@runtime_checkable
class FeatureStore(Protocol):
    """Region features by image id; safe to read from several threads.

    A store may also offer `id in store`, and `share(count)`: an equal store for one of `count`
    processes, with its part of the memory.
    """

    feature_size: int

    def __getitem__(self, image_id: ImageId) -> RegionFeatures:
        """Read one image; DataError when it is absent or cannot be used."""

    def num_regions(self, image_id: ImageId) -> int:
        """Return the number of regions R of one image, if possible without reading features."""

    def check(self, image_ids: Iterable[ImageId]) -> None:
        """Raise one DataError that lists all ids without features (contents are not read)."""


def share_of(store: FeatureStore, count: int) -> FeatureStore:
    """Return an equal store for one of `count` processes."""
    return store.share(count) if hasattr(store, "share") else store


def validated(
    features: np.ndarray,
    boxes: np.ndarray | None,
    fc: np.ndarray | None,
    feature_size: int,
    names: tuple[str, str, str] | str,
) -> RegionFeatures:
    """Check one image's arrays, as every store does, and convert them to float32.

    Args:
        features: floating `[R, D]`, or a grid `[h, w, D]`, which becomes `[h * w, D]`.
        boxes: floating `[R, 4]` relative corners, or None.
        fc: floating `[D]`, or None for the mean over regions.
        feature_size: the D that is expected.
        names: names of features, boxes and fc in errors, or the file or record that holds them.

    Raises:
        DataError: wrong rank, width or type, no regions, NaN or infinity, boxes that do not match.
    """
    if isinstance(names, str):
        names = f"{names}: features", f"{names}: boxes", f"{names}: fc"
    if features.ndim not in (2, 3) or features.shape[-1] != feature_size:
        turned = features.ndim == 2 and len(features) == feature_size
        reason = ", which is transposed" if turned else f"; feature_size is {feature_size}"
        raise DataError(
            f"{names[0]}: expected shape [R, {feature_size}] or [h, w, {feature_size}], "
            f"found {list(features.shape)}{reason}"
        )
    features = _as_float32(features.reshape(-1, feature_size), names[0])
    if not len(features):
        raise DataError(f"{names[0]}: no regions, expected at least one")
    if boxes is not None:
        if boxes.shape != (len(features), 4):
            expected = f"expected shape [{len(features)}, 4] to match the features"
            raise DataError(f"{names[1]}: {expected}, found {list(boxes.shape)}")
        boxes = _as_float32(boxes, names[1])
        _check_boxes(boxes, names[1])
    if fc is None:
        fc = features.mean(axis=0, dtype=np.float32)
    elif fc.shape != (feature_size,):
        raise DataError(f"{names[2]}: expected shape [{feature_size}], found {list(fc.shape)}")
    return RegionFeatures(features, boxes, _as_float32(fc, names[2]))


def _as_float32(array: np.ndarray, where: str) -> np.ndarray:
    """Convert to contiguous float32; anything but finite numbers is an error."""
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, np.float32)
    finite = np.isfinite(array)
    if not finite.all():
        faults = np.argwhere(~finite)
        raise DataError(
            f"{where}: {len(faults)} values are NaN or infinite (or too large for float32), "
            f"the first at {faults[0].tolist()}"
        )
    return array


def _check_boxes(boxes: np.ndarray, where: str) -> None:
    """Raise a DataError unless corners are relative, and in order."""
    outside = ((boxes < -BOX_TOLERANCE) | (boxes > 1 + BOX_TOLERANCE)).any(axis=1)
    flipped = (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
    corners = "x1, y1, x2, y2 divided by image width and height, within [0, 1]"
    for faulty, expected in ((outside, corners), (flipped, "x1<=x2 and y1<=y2")):
        if faulty.any():
            row = int(faulty.argmax())
            raise DataError(f"{where}: row {row} is {boxes[row].tolist()}, expected {expected}")


def rounded(features: np.ndarray, dtype: str, image_id: ImageId) -> np.ndarray:
    """Return float32 features as `dtype`, float32 or float16; DataError where they do not fit."""
    with np.errstate(over="ignore"):
        result = features.astype(dtype, copy=False)
    if result is not features and not np.isfinite(result).all():
        raise DataError(f"image {image_id!r}: features are too large for {result.dtype}")
    return result


def relative_boxes(
    boxes: np.ndarray, width: int | float, height: int | float, where: str
) -> Float[np.ndarray, "R 4"]:
    """Divide corners in pixels by image width and height, as the reference does: clipped to [0, 1].

    Raises:
        DataError: boxes are not `[R, 4]`, or a size is not positive.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise DataError(f"{where}: expected shape [R, 4], found {list(boxes.shape)}")
    if not (width > 0 and height > 0):
        raise DataError(f"{where}: expected a positive image size, found {width} x {height}")
    with np.errstate(invalid="ignore"):
        scaled = boxes.astype(np.float64) / np.array([width, height, width, height], np.float64)
    return np.clip(scaled, 0.0, 1.0).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Arrays:
    """One image's arrays as they were stored, boxes relative already; `names` as in `validated`."""

    features: np.ndarray
    boxes: np.ndarray | None
    fc: np.ndarray | None
    names: tuple[str, str, str] | str


class IndexedStore(abc.ABC):
    """Base of stores that know all their image ids.

    A store implements `_load_index`, which maps image ids to whatever finds the image again, and
    `_read` of one such key. Stores are read lazily, from several threads, and may be sent to other
    processes, which open the files of `_opened` again.

    Args:
        path: file or folder.
        feature_size: width D of the features.
        need_boxes: read boxes, and require them for every image; otherwise `boxes` is None.
        sizes: (width, height) of the images, for formats whose boxes are in pixels without them.

    Raises:
        ConfigError: a package that reads it is missing.
        DataError: `path` is not of the store's format.
    """

    unit = "features"

    def __init__(
        self,
        path: str | os.PathLike,
        feature_size: int = 2048,
        need_boxes: bool = False,
        sizes: ImageSizes | None = None,
    ):
        if feature_size < 1:
            raise ConfigError(f"feature_size: expected at least 1, found {feature_size}")
        self.path = pathlib.Path(path)
        self.feature_size = feature_size
        self.need_boxes = need_boxes
        self.sizes = sizes
        self._counts: dict[ImageId, int] = {}
        self._files: dict[tuple[int, str], Any] = {}

    @functools.cached_property
    def index(self) -> dict[ImageId, Any]:
        """Place of each image by id; read when first needed."""
        return self._load_index()

    def image_ids(self) -> list[ImageId]:
        """Return all image ids, integers first, each kind in order."""
        return sorted(self.index, key=lambda id_: (isinstance(id_, str), id_))

    def __len__(self) -> int:
        """Number of images."""
        return len(self.index)

    def __contains__(self, image_id: Any) -> bool:
        """Return whether there are features of an image."""
        return normalize_id(image_id) in self.index

    def check(self, image_ids: Iterable[ImageId]) -> None:
        """Raise one DataError that lists all ids without features (contents are not read)."""
        ids = list(image_ids)
        raise_missing(self.path, self.unit, [i for i in ids if i not in self], len(ids))

    def num_regions(self, image_id: ImageId) -> int:
        """Return the number of regions of one image, without reading its features."""
        image_id = normalize_id(image_id)
        if image_id not in self._counts:
            self._counts[image_id] = self._count(self._key(image_id), image_id)
        return self._counts[image_id]

    def __getitem__(self, image_id: ImageId) -> RegionFeatures:
        """Read one image; DataError for an unknown id, and for arrays that are not `validated`."""
        image_id = normalize_id(image_id)
        arrays = self._read(self._key(image_id), image_id)
        boxes = arrays.boxes if self.need_boxes else None
        regions = validated(arrays.features, boxes, arrays.fc, self.feature_size, arrays.names)
        self._counts[image_id] = len(regions.features)
        return regions

    def __getstate__(self) -> dict[str, Any]:
        """Return all but open files, which the other process opens again."""
        return {**self.__dict__, "_files": {}}

    def _opened(self, name: str, opener: Callable[[str], Any]) -> Any:
        """Return `opener(name)`, which every process calls once."""
        key = os.getpid(), name
        if key not in self._files:
            self._files.setdefault(key, opener(name))
        return self._files[key]

    def _key(self, image_id: ImageId) -> Any:
        key = self.index.get(image_id)
        if key is None:
            raise DataError(f"{self.path}: no features of image {image_id!r}")
        return key

    def _relative(
        self, boxes: np.ndarray, image_id: ImageId, where: str, name: str | None = None
    ) -> np.ndarray:
        """Divide boxes in pixels by the image's size; `name` is that of the boxes in errors."""
        if self.sizes is None:
            raise DataError(f"{where}: boxes are in pixels; expected the sizes of the images too")
        if image_id not in self.sizes:
            raise DataError(f"{where}: the size of image {image_id!r} is not known")
        return relative_boxes(boxes, *self.sizes[image_id], name or where)

    def _unique(self, keys: Iterable[tuple[ImageId, Any]]) -> dict[ImageId, Any]:
        """Return an index of (id, key) pairs; two keys of one id are an error."""
        index: dict[ImageId, Any] = {}
        for image_id, key in keys:
            other = index.setdefault(image_id, key)
            if other != key:
                raise DataError(f"{self.path}: {other} and {key} are one image id")
        return index

    @abc.abstractmethod
    def _load_index(self) -> dict[ImageId, Any]:
        """Return the place of each image, in whatever form `_read` takes."""

    @abc.abstractmethod
    def _read(self, key: Any, image_id: ImageId) -> Arrays:
        """Return the arrays of an image."""

    def _count(self, key: Any, image_id: ImageId) -> int:
        """Return the number of regions of an image, where it can be had without its features."""
        return math.prod(self._read(key, image_id).features.shape[:-1])


def raise_missing(place: Any, unit: str, missing: list[ImageId], total: int) -> None:
    """Raise one DataError about all `missing` ids, if there are any."""
    if missing:
        listed = ", ".join(map(str, missing[:_MAX_LISTED]))
        rest = f" and {len(missing) - _MAX_LISTED} more" if len(missing) > _MAX_LISTED else ""
        raise DataError(f"{place}: no {unit} for {len(missing)} of {total} images: {listed}{rest}")
