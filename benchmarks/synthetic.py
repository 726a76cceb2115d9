"""A store of any size, made on the fly, that measures pipelines and their memory."""

from collections.abc import Iterable, Sequence

import numpy as np

from sparsecap_jax.data.features import RegionFeatures
from sparsecap_jax.data.records import ImageId, Record
from sparsecap_jax.errors import ConfigError, DataError

COCO_TRAIN = 113_287
_POOL = 1 << 22  # floats that features are cut from: making them must cost nothing


class SyntheticStore:
    """`num_images` images with ids from 0, whose features are cut from one block of noise.

    The same id always gives the same array; numbers of regions are drawn once.

    Args:
        num_images: number of images, by default that of COCO's Karpathy training split.
        feature_size: width D of the features.
        regions: least and greatest number of regions, as 10 and 100, or 36 and 36.
        need_boxes: make boxes too.
        seed: of the noise.
    """

    def __init__(
        self,
        num_images: int = COCO_TRAIN,
        feature_size: int = 2048,
        regions: tuple[int, int] = (10, 100),
        need_boxes: bool = False,
        seed: int = 0,
    ):
        low, high = regions
        if num_images < 1 or not 1 <= low <= high or high * feature_size > _POOL // 2:
            raise ConfigError(f"synthetic store: {num_images} images of {regions} regions")
        self.feature_size = feature_size
        self.num_images = num_images
        self.need_boxes = need_boxes
        rng = np.random.default_rng(seed)
        self._noise = np.maximum(rng.standard_normal(_POOL, np.float32), 0)
        self._counts = rng.integers(low, high + 1, num_images)
        self._starts = rng.integers(0, _POOL - high * feature_size, num_images)

    def __len__(self) -> int:
        """Number of images."""
        return self.num_images

    def image_ids(self) -> range:
        """Return all ids."""
        return range(self.num_images)

    def num_regions(self, image_id: ImageId) -> int:
        """Return the number of regions of one image."""
        return int(self._counts[image_id])

    def check(self, image_ids: Iterable[ImageId]) -> None:
        """Raise one DataError when an id is unknown."""
        wrong = [i for i in image_ids if not (isinstance(i, int) and 0 <= i < self.num_images)]
        if wrong:
            raise DataError(f"synthetic store: no images {wrong[:5]}")

    def __getitem__(self, image_id: ImageId) -> RegionFeatures:
        """Make one image: a copy, as reading a file would give."""
        self.check([image_id])
        count, start = int(self._counts[image_id]), int(self._starts[image_id])
        size = count * self.feature_size
        features = self._noise[start : start + size].reshape(count, self.feature_size).copy()
        boxes = None
        if self.need_boxes:
            corners = np.minimum(self._noise[start : start + count * 4].reshape(count, 4), 1)
            low, high = corners[:, :2] / 2, 0.5 + corners[:, 2:] / 2
            boxes = np.concatenate([low, high], axis=1)
        return RegionFeatures(features, boxes, features.mean(0, dtype=np.float32))


def synthetic_records(num_images: int, captions: Sequence[str], per_image: int = 5) -> list[Record]:
    """Return training records of a `SyntheticStore`; captions are dealt out cyclically."""
    texts = [
        tuple(captions[(per_image * i + k) % len(captions)] for k in range(per_image))
        for i in range(num_images)
    ]
    return [Record(i, "train", f"{i}.jpg", t, t) for i, t in enumerate(texts)]
