"""LMDB databases of self-critical training codes: image id -> the bytes of an `.npy` or `.npz`."""

import functools
import importlib
import math
import os
import pathlib
from typing import Any

import numpy as np

from sparsecap_jax.data.indexed_store import Arrays, IndexedStore
from sparsecap_jax.data.npy import Npz, parse_npy
from sparsecap_jax.data.records import ImageId, normalize_id
from sparsecap_jax.data.regions import relative_boxes
from sparsecap_jax.errors import DataError

_NOT_IDS = (b"__keys__", b"__len__", b"keys", b"length")


class LmdbStore(IndexedStore):
    """`cocobu_att.lmdb`, with `cocobu_box_relative.lmdb` or `cocobu_box.lmdb`, `cocobu_fc.lmdb`.

    A database may be a folder (`data.mdb`) or one file. Keys are image ids, with or without an
    extension; values are whole `.npy` files, or `.npz` with `feat`. Databases of pickles (ViLBERT)
    are refused: a pickle can run code.

    Args:
        path: the database of features, or the folder that holds `*_att.lmdb`.

    Raises:
        DataError: no database; lmdb is not installed.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        if not _is_database(self.path):
            found = sorted(p for p in self.path.glob("*_att.lmdb") if _is_database(p))
            if not found:
                raise DataError(f"{self.path}: no LMDB database; expected data.mdb or *_att.lmdb")
            self.path = found[0]
        beside = [self.path.with_name(self.path.name.replace("_att", name)) for name in _BESIDE]
        beside = [path if path != self.path and path.exists() else None for path in beside]
        self._boxes, self._pixel_boxes, self._fc = beside
        if self.need_boxes and not (self._boxes or self._pixel_boxes):
            raise DataError(f"{self.path}: boxes are needed, and no *_box*.lmdb lies beside it")

    def _load_index(self) -> dict[ImageId, bytes]:
        index: dict[ImageId, bytes] = {}
        with _open(self.path.resolve(), os.getpid()).begin() as transaction:
            for key in transaction.cursor().iternext(values=False):
                key = bytes(key)
                if key in _NOT_IDS:
                    continue
                image_id = _id(key, self.path)
                other = index.setdefault(image_id, key)
                if other != key:
                    raise DataError(f"{self.path}: {other!r} and {key!r} are one image id")
        if not index:
            raise DataError(f"{self.path}: the database is empty")
        return index

    def _count(self, key: bytes, image_id: ImageId) -> int:
        return math.prod(self._array(self.path, key, f"{self.path}: {image_id}").shape[:-1])

    def _read(self, key: bytes, image_id: ImageId) -> Arrays:
        where = f"{self.path}: {image_id}"
        features = self._array(self.path, key, where)
        boxes = fc = None
        if self.need_boxes and self._boxes:
            boxes = self._array(self._boxes, key, f"{self._boxes}: {image_id}")
        elif self.need_boxes:
            boxes = self._array(self._pixel_boxes, key, f"{self._pixel_boxes}: {image_id}")
            boxes = relative_boxes(boxes, *self.size_of(image_id, where), where)
        if self._fc:
            fc = self._array(self._fc, key, f"{self._fc}: {image_id}")
        return Arrays(features, boxes, fc, (f"{where}: features", f"{where}: boxes", where))

    def _array(self, path: pathlib.Path, key: bytes, where: str) -> np.ndarray:
        with _open(path.resolve(), os.getpid()).begin() as transaction:
            value = transaction.get(key)
        if value is None:
            raise DataError(f"{where}: no such key")
        if value[:2] == b"PK":
            with Npz(bytes(value), where) as archive:
                names = archive.names()
                return archive["feat" if "feat" in names or not names else names[0]]
        if value[:1] == b"\x80":
            raise DataError(f"{where}: a pickle, which is never read; expected .npy or .npz")
        return parse_npy(bytes(value), where)


@functools.cache
def _open(path: pathlib.Path, process: int) -> Any:
    """The open database; LMDB wants one per process, whatever the number of stores."""
    try:
        lmdb = importlib.import_module("lmdb")
    except ModuleNotFoundError:
        message = "reading LMDB takes lmdb; pip install 'sparsecap_jax[lmdb]'"
        raise DataError(f"{path}: {message}") from None
    try:
        return lmdb.open(
            str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False
        )
    except lmdb.Error as error:
        raise DataError(f"{path}: not an LMDB database: {error}") from None


_BESIDE = ("_box_relative", "_box", "_fc")


def _is_database(path: pathlib.Path) -> bool:
    if path.is_dir():
        return (path / "data.mdb").is_file()
    return path.is_file() and path.suffix in (".lmdb", ".mdb")


def _id(key: bytes, where: pathlib.Path) -> ImageId:
    try:
        text = key.decode("utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{where}: key {key!r:.40} is not UTF-8") from None
    return normalize_id(text.removesuffix(".npy").removesuffix(".npz"))
