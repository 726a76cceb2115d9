"""A memory cache in front of any feature store: small datasets are read once."""

import copy
import math
import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
import psutil

from sparsecap_jax.data.features import FeatureStore, RegionFeatures, rounded
from sparsecap_jax.data.records import ImageId
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.settings import Range, check_range


class CachedStore:
    """A store that keeps images in memory until a limit is reached, then reads through.

    Nothing is ever evicted: an epoch visits every image once, so keeping a fixed part of them saves
    the most reads (any policy that evicts saves none).

    Args:
        store: the store to read from.
        max_bytes: upper limit of the arrays kept, in bytes; None: only `min_free_ram` limits.
        min_free_ram: an image is kept only while at least this fraction of the machine's memory is
            available (the reference's `cache_min_free_ram`); 1 turns the cache off.
        dtype: "float32", or "float16": features take half the memory, and are returned rounded
            (even when just read, so that results do not depend on free memory).
    """

    def __init__(
        self,
        store: FeatureStore,
        *,
        max_bytes: int | None = None,
        min_free_ram: float = 0.4,
        dtype: str = "float32",
    ):
        check_range("cache max_bytes", max_bytes or 0, Range(0))
        check_range("cache_min_free_ram", min_free_ram, Range(0, 1))
        if dtype not in ("float32", "float16"):
            raise ConfigError(f"cache_dtype: expected float32 or float16, found {dtype!r}")
        self.feature_size = store.feature_size
        self.nbytes = 0
        self._store: Any = store  # it may also offer `in` and `share`
        self._max_bytes = math.inf if max_bytes is None else max_bytes
        self._min_free_ram = min_free_ram
        self._dtype = dtype
        self._kept: dict[ImageId, RegionFeatures] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Number of images in memory."""
        return len(self._kept)

    def __getitem__(self, image_id: ImageId) -> RegionFeatures:
        """Return one image from memory, or read it and keep it if there is room."""
        kept = self._kept.get(image_id)
        if kept is None:
            regions = self._store[image_id]
            features = rounded(regions.features, self._dtype, image_id)
            kept = RegionFeatures(features, regions.boxes, regions.fc)
            self._keep(image_id, kept)
        return RegionFeatures(kept.features.astype(np.float32, copy=False), kept.boxes, kept.fc)

    def __contains__(self, image_id: object) -> bool:
        """Return whether there are features of an image."""
        return image_id in self._store

    def num_regions(self, image_id: ImageId) -> int:
        """Return the number of regions of one image."""
        regions = self._kept.get(image_id)
        return self._store.num_regions(image_id) if regions is None else len(regions.features)

    def check(self, image_ids: Iterable[ImageId]) -> None:
        """Raise one DataError that lists all ids without features."""
        self._store.check(image_ids)

    def share(self, count: int) -> "CachedStore":
        """Return an empty cache of `1 / count` of the size, for one of `count` processes."""
        part = copy.copy(self)
        part._max_bytes /= count
        return part

    def __getstate__(self) -> dict[str, Any]:
        """Return all but the images kept: a copy, or another process, fills a cache of its own."""
        return {**self.__dict__, "_kept": {}, "nbytes": 0, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def _keep(self, image_id: ImageId, regions: RegionFeatures) -> None:
        """Keep an image where there is room."""
        memory = psutil.virtual_memory()
        if self._min_free_ram == 1 or memory.available <= self._min_free_ram * memory.total:
            return
        with self._lock:
            grown = self.nbytes + regions.nbytes
            if grown <= self._max_bytes and image_id not in self._kept:
                self._kept[image_id] = regions
                self.nbytes = grown
