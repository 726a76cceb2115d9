"""What all feature stores share: an index read once, checks, and one way to complain."""

import abc
import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from sparsecap_jax.data.records import ImageId, normalize_id
from sparsecap_jax.data.regions import RegionFeatures, validated
from sparsecap_jax.errors import ConfigError, DataError

_MAX_LISTED = 10  # ids that an error message names, of perhaps 100,000

ImageSizes = Mapping[ImageId, tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Arrays:
    """One image's arrays as they were stored, boxes relative already, and what to call them."""

    features: np.ndarray
    boxes: np.ndarray | None
    fc: np.ndarray | None
    names: tuple[str, str, str]


class IndexedStore(abc.ABC):
    """Base of stores that know all their image ids.

    A store implements `_load_index`, which maps image ids to whatever finds the image again, and
    `_read` and `_count` of one such key. Stores are read lazily, from several threads, and may be
    sent to other processes: what cannot be (open files) is named in `_handles` and set to None.

    Args:
        path: file or folder.
        feature_size: width D of the features.
        need_boxes: read boxes, and require them for every image; otherwise `boxes` is None.
        sizes: (width, height) of the images, for formats whose boxes are in pixels without them.
    """

    unit = "features"
    _handles: tuple[str, ...] = ()

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
        self._index: dict[ImageId, Any] | None = None
        self._counts: dict[ImageId, int] = {}

    @property
    def index(self) -> dict[ImageId, Any]:
        """Image id -> where the image is; read when first needed."""
        if self._index is None:
            self._index = self._load_index()
        return self._index

    def image_ids(self) -> list[ImageId]:
        """All image ids, integers first, each kind in order."""
        return sorted(self.index, key=lambda id_: (isinstance(id_, str), id_))

    def __len__(self) -> int:
        """Number of images."""
        return len(self.index)

    def check(self, image_ids: Iterable[ImageId]) -> None:
        """Raise one DataError that tells of every id without features (contents are not read)."""
        ids = list(image_ids)
        missing = [i for i in ids if normalize_id(i) not in self.index]
        raise_missing(self.path, self.unit, missing, len(ids))

    def num_regions(self, image_id: ImageId) -> int:
        """Number of regions of one image, without reading its features."""
        image_id = normalize_id(image_id)
        if image_id not in self._counts:
            self._counts[image_id] = self._count(self._key(image_id), image_id)
        return self._counts[image_id]

    def __getitem__(self, image_id: ImageId) -> RegionFeatures:
        """Read one image.

        Raises:
            DataError: no such id, or arrays that are truncated, of the wrong shape or type, not
                finite, or whose boxes do not match.
        """
        image_id = normalize_id(image_id)
        arrays = self._read(self._key(image_id), image_id)
        regions = validated(
            arrays.features,
            arrays.boxes if self.need_boxes else None,
            arrays.fc,
            self.feature_size,
            arrays.names,
        )
        self._counts[image_id] = len(regions.features)
        return regions

    def size_of(self, image_id: ImageId, where: str) -> tuple[int, int]:
        """Width and height of an image.

        Raises:
            DataError: they are not known.
        """
        if self.sizes is None:
            raise DataError(f"{where}: boxes are in pixels; expected the sizes of the images too")
        if image_id not in self.sizes:
            raise DataError(f"{where}: the size of image {image_id!r} is not known")
        return self.sizes[image_id]

    def __getstate__(self) -> dict[str, Any]:
        """Without open files; they are opened again in the other process."""
        return {**self.__dict__, **dict.fromkeys(self._handles)}

    def _key(self, image_id: ImageId) -> Any:
        key = self.index.get(image_id)
        if key is None:
            raise DataError(f"{self.path}: no features of image {image_id!r}")
        return key

    @abc.abstractmethod
    def _load_index(self) -> dict[ImageId, Any]:
        """Where each image is, in whatever form `_read` takes."""

    @abc.abstractmethod
    def _read(self, key: Any, image_id: ImageId) -> Arrays:
        """The arrays of an image."""

    @abc.abstractmethod
    def _count(self, key: Any, image_id: ImageId) -> int:
        """How many regions an image has."""


def raise_missing(place: Any, unit: str, missing: list[ImageId], total: int) -> None:
    """Raise one DataError about all `missing` ids, if there are any."""
    if missing:
        listed = ", ".join(map(str, missing[:_MAX_LISTED]))
        more = f" and {len(missing) - _MAX_LISTED} more" if len(missing) > _MAX_LISTED else ""
        raise DataError(f"{place}: no {unit} for {len(missing)} of {total} images: {listed}{more}")
