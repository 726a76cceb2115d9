"""Folders with the features of one image a file, `.npy` or `.npz`."""

import math
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from sparsecap_jax.arrays import IMAGE_BYTES, ArrayFile, npy_shape, read_npy
from sparsecap_jax.data.features import Arrays, IndexedStore, raise_missing, relative_boxes
from sparsecap_jax.data.records import ImageId, data_error, image_id_from_stem, normalize_id
from sparsecap_jax.errors import DataError
from sparsecap_jax.files import absent

_NPZ_NAMES = ("feat", "features", "arr_0")


class NpyFolderStore(IndexedStore):
    """Bottom-up features in folders of `.npy`, one file per image, named by image id.

    Layout below `path`, or below `path/bu`: `cocobu_att/ID.npy` float `[R, D]` (or `[h, w, D]`; or
    `ID.npz` with `feat`), `cocobu_box_relative/ID.npy` float `[R, 4]`, or `cocobu_box/ID.npy` in
    pixels, `cocobu_fc/ID.npy` float `[D]`. Another prefix than `cocobu` will do. A missing fc file
    means the mean over regions. float16, float32 and float64 are read; pickled arrays never are.
    Folders are listed once, when first needed. Arguments as in `IndexedStore`.
    """

    unit = "file"

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        top = self.path
        folders = [folder for root in (top / "bu", top) for folder in attention_folders(root)]
        if not folders:
            raise DataError(f"{top}: holds neither bu/cocobu_att/ nor cocobu_att/")
        self.path = folders[0]
        prefix = self.path.name.removesuffix("att")
        names = (f"{prefix}{part}" for part in ("box_relative", "box", "fc"))
        self._boxes, pixels, self._fc = map(self.path.with_name, names)
        self._in_pixels = not self._boxes.is_dir() and pixels.is_dir()
        if self._in_pixels:
            self._boxes = pixels
        if self.need_boxes and not self._boxes.is_dir():
            raise DataError(absent(self._boxes, "boxes, which are needed"))

    def check(self, image_ids: Iterable[ImageId]) -> None:
        """Raise one DataError that lists all ids whose feature or needed box file is absent."""
        ids = list(image_ids)
        super().check(ids)
        if self.need_boxes:
            names = {*os.listdir(self._boxes)}
            missing = [i for i in ids if f"{self._key(normalize_id(i))[:-4]}.npy" not in names]
            raise_missing(self._boxes, self.unit, missing, len(ids))

    def _load_index(self) -> dict[ImageId, str]:
        """Return image id -> file name. Only names in the folder can be reached."""
        names = (n for n in sorted(os.listdir(self.path)) if n.endswith((".npy", ".npz")))
        return self._unique((normalize_id(name[:-4]), name) for name in names)

    def _count(self, key: str, image_id: ImageId) -> int:
        path = self.path / key
        if path.suffix == ".npy":
            return math.prod(npy_shape(path)[:-1])
        with _archive(path) as archive:
            return math.prod(archive.shape(_feature_name(archive))[:-1])

    def _read(self, key: str, image_id: ImageId) -> Arrays:
        path, name = self.path / key, f"{key[:-4]}.npy"
        boxes_path, fc_path = self._boxes / name, self._fc / name
        if path.suffix == ".npy":
            features = read_npy(path)
        else:
            with _archive(path) as archive:
                features = archive.read(_feature_name(archive))
        names = f"{path}: features", f"{boxes_path}: boxes", f"{fc_path}: fc"
        boxes = read_npy(boxes_path) if self.need_boxes else None
        if boxes is not None and self._in_pixels:
            boxes = self._relative(boxes, image_id, str(boxes_path), names[1])
        fc = read_npy(fc_path) if fc_path.is_file() else None
        return Arrays(features, boxes, fc, names)


def attention_folders(root: pathlib.Path) -> list[pathlib.Path]:
    """Return the folders of features below `root`: `cocobu_att` first, then other `*_att`."""
    folders = sorted(folder for folder in root.glob("*_att") if folder.is_dir())
    return sorted(folders, key=lambda folder: folder.name != "cocobu_att")


def _feature_name(archive: ArrayFile) -> str:
    """Return the name of the features in an archive of self-critical training codes: `feat`."""
    return next((name for name in _NPZ_NAMES if name in archive.names), _NPZ_NAMES[0])


def _archive(path: pathlib.Path) -> ArrayFile:
    return ArrayFile(path, max_bytes=IMAGE_BYTES)


class NpzFolderStore(IndexedStore):
    """Folders of `.npz` as bottom-up-attention.pytorch writes them: one archive per image.

    `ID.npz` holds `x` [R, D], `bbox` [R, 4] in pixels, `num_bbox`, `image_h` and `image_w`. Names
    may be those of the pictures (`COCO_val2014_000000391895.jpg.npz`). `info`, a pickled dict, is
    never looked at. OpenVQA's archives, whose `x` is `[D, R]`, are read too.
    """

    unit = "file"

    def _load_index(self) -> dict[ImageId, str]:
        with data_error(f"{self.path}: cannot be read", OSError):
            names = sorted(name for name in os.listdir(self.path) if name.endswith(".npz"))
        if not names:
            raise DataError(f"{self.path}: holds no .npz")
        return self._unique((image_id_from_stem(name[:-4]), name) for name in names)

    def _count(self, key: str, image_id: ImageId) -> int:
        with _archive(self.path / key) as archive:
            shape = archive.shape("x")
            return _regions(archive, shape[-1] if self._turned(shape) else (*shape, 0)[0])

    def _read(self, key: str, image_id: ImageId) -> Arrays:
        path = str(self.path / key)
        with _archive(self.path / key) as archive:
            features = archive.read("x")
            features = features.T if self._turned(features.shape) else features
            count = _regions(archive, (*features.shape, 0)[0])
            boxes = None
            if self.need_boxes:
                width, height = archive.number("image_w"), archive.number("image_h")
                boxes = relative_boxes(archive.read("bbox"), width, height, f"{path}: bbox")[:count]
        if features.shape[-1:] == (self.feature_size,):  # else the error shows them whole
            features = features[:count]
        return Arrays(features, boxes, None, (f"{path}: x", f"{path}: bbox", path))

    def _turned(self, shape: tuple[int, ...]) -> bool:
        """Return whether features are `[D, R]`; `[D, D]` counts as `[R, D]`."""
        return len(shape) == 2 and shape[0] == self.feature_size != shape[1]


def _regions(archive: ArrayFile, rows: int) -> int:
    """Return the number of regions: `num_bbox`, of which `x` may have more rows."""
    count = archive.number("num_bbox") if "num_bbox" in archive.names else rows
    if not 0 < count <= rows:
        raise DataError(f"{archive.where}: num_bbox is {count}, but x has {rows} rows")
    return count
