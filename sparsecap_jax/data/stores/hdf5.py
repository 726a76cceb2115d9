"""HDF5 files of the Meshed-Memory Transformer: `ID_features` and `ID_boxes` in one file."""

import importlib
import math
import os
from typing import Any

from sparsecap_jax.data.indexed_store import Arrays, IndexedStore
from sparsecap_jax.data.records import ImageId, normalize_id
from sparsecap_jax.data.regions import relative_boxes
from sparsecap_jax.errors import DataError

_SUFFIX = "_features"


class Hdf5Store(IndexedStore):
    """`ID_features` float [R, D] (or a grid [h, w, D]) and `ID_boxes` float [R, 4].

    Boxes are in pixels, and the file does not hold the sizes of the images: give `sizes` where
    boxes are needed. Boxes that lie within [0, 1] altogether are taken as relative already.

    Raises:
        DataError: no HDF5 file, or nothing of that layout in it; h5py is not installed.
    """

    _handles = ("_file",)

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._file: Any = None
        self._process = 0

    def _open(self) -> Any:
        """The open file; every process opens its own."""
        if self._file is None or self._process != os.getpid():
            try:
                h5py = importlib.import_module("h5py")
            except ModuleNotFoundError:
                message = "reading HDF5 takes h5py; pip install 'sparsecap_jax[h5]'"
                raise DataError(f"{self.path}: {message}") from None
            try:
                self._file = h5py.File(self.path, "r")
            except OSError as error:
                reason = "no such file" if not self.path.exists() else str(error).splitlines()[0]
                raise DataError(f"{self.path}: not an HDF5 file: {reason}") from None
            self._process = os.getpid()
        return self._file

    def _load_index(self) -> dict[ImageId, str]:
        names = [name for name in self._open() if name.endswith(_SUFFIX)]
        if not names:
            found = ", ".join(list(self._open())[:5]) or "nothing"
            raise DataError(f"{self.path}: no ID_features; found {found}")
        index: dict[ImageId, str] = {}
        for name in names:
            stem = name.removesuffix(_SUFFIX)
            other = index.setdefault(normalize_id(stem), stem)
            if other != stem:
                raise DataError(f"{self.path}: {other} and {stem} are one image id")
        return index

    def _count(self, key: str, image_id: ImageId) -> int:
        return math.prod(self._dataset(key + _SUFFIX).shape[:-1])

    def _read(self, key: str, image_id: ImageId) -> Arrays:
        where = f"{self.path}: {key}"
        features = self._array(key + _SUFFIX)
        boxes = self._array(f"{key}_boxes") if self.need_boxes else None
        if boxes is not None and boxes.size and not (boxes.min() >= 0 and boxes.max() <= 1):
            boxes = relative_boxes(boxes, *self.size_of(image_id, where), f"{where}_boxes")
        return Arrays(features, boxes, None, (f"{where}_features", f"{where}_boxes", where))

    def _dataset(self, name: str) -> Any:
        file = self._open()
        dataset = file.get(name)
        if dataset is None or not hasattr(dataset, "dtype"):
            raise DataError(f"{self.path}: {name}: no such array")
        if dataset.dtype.kind != "f":
            raise DataError(f"{self.path}: {name}: expected floats, found {dataset.dtype}")
        return dataset

    def _array(self, name: str) -> Any:
        try:
            return self._dataset(name)[()]
        except (OSError, RuntimeError) as error:
            raise DataError(f"{self.path}: {name}: cannot be read: {error}") from None
