"""Databases with the features of all images in one file: HDF5 and LMDB."""

import math
import os
import pathlib
from typing import Any

import numpy as np

from sparsecap_jax.arrays import IMAGE_BYTES, ArrayFile, check_size, parse_npy
from sparsecap_jax.data.features import Arrays, IndexedStore
from sparsecap_jax.data.records import ImageId, data_error, normalize_id
from sparsecap_jax.data.stores._lmdb import read_places
from sparsecap_jax.errors import DataError
from sparsecap_jax.files import absent, open_regular
from sparsecap_jax.settings import optional_package

HDF5_SUFFIXES = (".h5", ".hdf5")
_SUFFIX = "_features"
_NOT_IDS = (b"__keys__", b"__len__", b"keys", b"length")
_OTHERS = ("_box_relative", "_box", "_fc")


class Hdf5Store(IndexedStore):
    """HDF5 files of the Meshed-Memory Transformer.

    `ID_features` float [R, D] (or a grid [h, w, D]) and `ID_boxes` float [R, 4]. Boxes are in
    pixels, and the file does not hold the sizes of the images: give `sizes` where boxes are needed.
    Boxes that lie within [0, 1] altogether are taken as relative already.
    """

    def __init__(self, *args: Any, **options: Any):
        optional_package("h5py", "h5", "reading HDF5")
        super().__init__(*args, **options)
        files = hdf5_files(self.path)
        if len(files) > 1:
            names = ", ".join(path.name for path in files[:5])
            raise DataError(f"{self.path}: holds {names}; expected the path of one HDF5 file")
        self.path = files[0] if files else self.path

    def _open(self, path: str) -> Any:
        import h5py

        if not self.path.exists():
            raise DataError(absent(path, "an HDF5 file"))
        with data_error(f"{path}: not an HDF5 file", OSError):
            return h5py.File(path, "r")

    def _load_index(self) -> dict[ImageId, str]:
        # Damaged files bring out nearly every built-in error.
        with data_error(f"{self.path}: cannot be read", Exception):
            names = [str(name) for name in self._opened(str(self.path), self._open)]
        stems = [name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)]
        if not stems:
            present = ", ".join(names[:5]) or "nothing"
            raise DataError(f"{self.path}: no ID_features; found {present:.200}")
        return self._unique((normalize_id(stem), stem) for stem in stems)

    def _count(self, key: str, image_id: ImageId) -> int:
        name = key + _SUFFIX
        with data_error(f"{self.path}: {name}: cannot be read", Exception):
            return math.prod(self._dataset(name).shape[:-1])

    def _read(self, key: str, image_id: ImageId) -> Arrays:
        where = f"{self.path}: {key}"
        features = self._array(key + _SUFFIX)
        boxes = self._array(f"{key}_boxes") if self.need_boxes else None
        if boxes is not None and boxes.size and not (boxes.min() >= 0 and boxes.max() <= 1):
            boxes = self._relative(boxes, image_id, where, f"{where}_boxes")
        return Arrays(features, boxes, None, (f"{where}_features", f"{where}_boxes", where))

    def _dataset(self, name: str) -> Any:
        """Return an array that lies in this very file, and is not too large to be read."""
        import h5py

        where = f"{self.path}: {name}"
        file = self._opened(str(self.path), self._open).id
        with data_error(f"{where}: no such array", KeyError, RuntimeError):
            is_link = file.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD
            dataset = None if is_link else h5py.Dataset(h5py.h5d.open(file, name.encode()))
        if dataset is None or dataset.is_virtual or dataset.external:
            raise DataError(f"{where}: refers to another place, which is not followed")
        if dataset.dtype.kind != "f":
            raise DataError(f"{where}: expected floats, found {dataset.dtype}")
        for shape in (dataset.shape, dataset.chunks or ()):
            check_size(shape, dataset.dtype, where)
        return dataset

    def _array(self, name: str) -> np.ndarray:
        with data_error(f"{self.path}: {name}: cannot be read", Exception):
            return self._dataset(name)[()]


def hdf5_files(path: pathlib.Path) -> list[pathlib.Path]:
    """Return the HDF5 files that lie in a folder."""
    return sorted(p for p in path.glob("*") if p.suffix.lower() in HDF5_SUFFIXES)


class LmdbStore(IndexedStore):
    """LMDB databases of self-critical training codes.

    `cocobu_att.lmdb`, with `cocobu_box_relative.lmdb` or `cocobu_box.lmdb`, `cocobu_fc.lmdb`. A
    database may be a folder (`data.mdb`) or one file. Keys are image ids, with or without an
    extension; values are whole `.npy` files, or `.npz` with `feat`. Databases of pickles (ViLBERT)
    are refused: a pickle can run code. `path` is the database of features, or the folder that
    holds `*_att.lmdb`.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._places: dict[pathlib.Path, dict[bytes, tuple[int, int]]] = {}
        if not _is_database(self.path):
            databases = sorted(p for p in self.path.glob("*_att.lmdb") if _is_database(p))
            if not databases:
                raise DataError(f"{self.path}: no LMDB database; expected data.mdb or *_att.lmdb")
            self.path = databases[0]
        paths = [self.path.with_name(self.path.name.replace("_att", name)) for name in _OTHERS]
        self._boxes, self._pixel_boxes, self._fc = (
            path if path != self.path and path.exists() else None for path in paths
        )
        if self.need_boxes and not (self._boxes or self._pixel_boxes):
            raise DataError(f"{self.path}: boxes are needed, and there is no *_box*.lmdb")

    def _load_index(self) -> dict[ImageId, bytes]:
        keys = (key for key in self._places_of(self.path) if key not in _NOT_IDS)
        index = self._unique((_id(key, self.path), key) for key in keys)
        if not index:
            raise DataError(f"{self.path}: the database is empty")
        return index

    def _read(self, key: bytes, image_id: ImageId) -> Arrays:
        where = f"{self.path}: {image_id}"
        features = self._array(self.path, key, image_id)
        boxes = None
        place = self._boxes or self._pixel_boxes
        if self.need_boxes and place is not None:
            boxes = self._array(place, key, image_id)
            boxes = boxes if self._boxes else self._relative(boxes, image_id, where)
        fc = self._array(self._fc, key, image_id) if self._fc else None
        return Arrays(features, boxes, fc, where)

    def _array(self, path: pathlib.Path, key: bytes, image_id: ImageId) -> np.ndarray:
        where = f"{path}: {image_id}"
        start, size = self._places_of(path).get(key, (0, -1))
        if size < 0:
            raise DataError(f"{where}: no such key")
        with data_error(f"{where}: cannot be read", OSError), open_regular(_file(path), 0) as file:
            value = os.pread(file.fileno(), size, start)
        if len(value) != size:
            raise DataError(f"{where}: truncated: {len(value)} bytes, expected {size}")
        if value[:2] == b"PK":
            with ArrayFile(value, where=where, max_bytes=IMAGE_BYTES) as archive:
                names = archive.names
                return archive.read("feat" if "feat" in names or not names else names[0])
        if value[:1] == b"\x80":
            raise DataError(f"{where}: a pickle, which is never read; expected .npy or .npz")
        return parse_npy(value, where)

    def _places_of(self, path: pathlib.Path) -> dict[bytes, tuple[int, int]]:
        if path not in self._places:
            self._places[path] = read_places(_file(path))
        return self._places[path]


def _file(path: pathlib.Path) -> pathlib.Path:
    return path / "data.mdb" if path.is_dir() else path


def _is_database(path: pathlib.Path) -> bool:
    if path.is_dir():
        return (path / "data.mdb").is_file()
    return path.is_file() and path.suffix in (".lmdb", ".mdb")


def _id(key: bytes, where: pathlib.Path) -> ImageId:
    with data_error(f"{where}: key {key!r:.40} is not UTF-8", UnicodeDecodeError):
        return normalize_id(key.decode().removesuffix(".npy").removesuffix(".npz"))
