"""Features that a caller holds in memory, as a store."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sparsecap_jax.data.features import RegionFeatures, validated
from sparsecap_jax.data.karpathy import ImageId
from sparsecap_jax.errors import DataError


class InMemoryFeatures:
    """A store of arrays in memory, `[features, boxes, fc]` of all images; ids count from 0."""

    def __init__(self, columns: Sequence[Any], feature_size: int, need_boxes: bool):
        self.feature_size = feature_size
        self._images: list[RegionFeatures] = []
        count, names = len(columns[0]), ("features", "boxes", "fc")
        columns = [[None] * count if arrays is None else arrays for arrays in columns]
        for name, arrays in zip(names, columns, strict=True):
            if len(arrays) != count:
                raise DataError(f"{name}: found {len(arrays)} images, expected {count}")
        parts: tuple[Any, ...]
        for number, parts in enumerate(zip(*columns, strict=True)):
            where = f"image {number}: features", f"image {number}: boxes", f"image {number}: fc"
            features = np.asarray(parts[0])
            boxes, fc = (None if part is None else np.asarray(part) for part in parts[1:])
            if need_boxes and boxes is None:
                raise DataError(f"{where[1]}: found none, but the model needs them")
            self._images.append(validated(features, boxes, fc, feature_size, where))

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, image_id: ImageId) -> RegionFeatures:
        return self._images[int(image_id)]

    def num_regions(self, image_id: ImageId) -> int:
        """Return the number of regions of an image."""
        return len(self[image_id].features)

    def check(self, image_ids: Iterable[ImageId]) -> None:
        """Do nothing: no image can be missing."""
