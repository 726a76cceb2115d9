"""Where region features come from: the interface, and the folders of `.npy` behind it.

Other formats are in `sparsecap_jax.data.stores`; `open_store` there finds the right one.
"""

import math
import os
import pathlib
from collections.abc import Iterable

from sparsecap_jax.data.indexed_store import Arrays, ImageSizes, IndexedStore, raise_missing
from sparsecap_jax.data.npy import Npz, npy_shape, read_npy
from sparsecap_jax.data.records import ImageId, normalize_id
from sparsecap_jax.data.regions import (
    BOX_TOLERANCE,
    FeatureStore,
    RegionFeatures,
    relative_boxes,
    validated,
)
from sparsecap_jax.errors import DataError

__all__ = ["BOX_TOLERANCE", "FeatureStore", "NpyFolderStore", "RegionFeatures", "validated"]

_EXTENSIONS = (".npy", ".npz")
_NPZ_NAMES = ("feat", "features", "arr_0")


class NpyFolderStore(IndexedStore):
    """Bottom-up features in folders of `.npy`, one file per image, named by image id.

    Layout below `directory`, or below `directory/bu`: `cocobu_att/ID.npy` float `[R, D]` (or
    `[h, w, D]`; or `ID.npz` with `feat`), `cocobu_box_relative/ID.npy` float `[R, 4]`, or
    `cocobu_box/ID.npy` in pixels, `cocobu_fc/ID.npy` float `[D]`. Another prefix than `cocobu` will
    do. A missing fc file means the mean over regions. float16, float32 and float64 are read;
    pickled arrays never are. Folders are listed once, when first needed.

    Args:
        directory: the folder that holds `bu/`, or `cocobu_att/` itself.
        feature_size: width D of the features.
        need_boxes: read boxes, and require them for every image; otherwise `boxes` is None.
        sizes: width and height of the images, where boxes are in pixels.

    Raises:
        DataError: `directory` does not have that layout.
    """

    unit = "file"

    def __init__(
        self,
        directory: str | os.PathLike,
        feature_size: int = 2048,
        need_boxes: bool = False,
        sizes: ImageSizes | None = None,
    ):
        super().__init__(directory, feature_size, need_boxes, sizes)
        top = pathlib.Path(directory)
        found = [folder for root in (top / "bu", top) for folder in attention_folders(root)]
        if not found:
            raise DataError(f"{top}: holds neither bu/cocobu_att/ nor cocobu_att/")
        self.path = found[0]
        prefix = self.path.name.removesuffix("att")
        self._boxes = self.path.with_name(f"{prefix}box_relative")
        pixels = self.path.with_name(f"{prefix}box")
        self._in_pixels = not self._boxes.is_dir() and pixels.is_dir()
        if self._in_pixels:
            self._boxes = pixels
        self._fc = self.path.with_name(f"{prefix}fc")
        if need_boxes and not self._boxes.is_dir():
            raise DataError(f"{self._boxes}: no such folder, but boxes are needed")

    def check(self, image_ids: Iterable[ImageId]) -> None:
        """Raise one DataError that tells of every id whose feature or needed box file is absent."""
        ids = list(image_ids)
        super().check(ids)
        if self.need_boxes:
            boxes = {os.path.splitext(name)[0] for name in os.listdir(self._boxes)}
            stems = {i: os.path.splitext(self.index[normalize_id(i)])[0] for i in ids}
            missing = [i for i in ids if stems[i] not in boxes]
            raise_missing(self._boxes, self.unit, missing, len(ids))

    def _load_index(self) -> dict[ImageId, str]:
        """Image id -> file name, for all feature files. Only names in the folder can be reached."""
        names: dict[ImageId, str] = {}
        for name in sorted(os.listdir(self.path)):
            stem, extension = os.path.splitext(name)
            if extension not in _EXTENSIONS:
                continue
            other = names.setdefault(normalize_id(stem), name)
            if other != name:
                raise DataError(f"{self.path}: {other} and {name} are one image id")
        return names

    def _count(self, key: str, image_id: ImageId) -> int:
        path = self.path / key
        if path.suffix == ".npy":
            return math.prod(npy_shape(path)[:-1])
        with Npz(path, str(path)) as archive:
            return math.prod(archive.shape(_feature_name(archive))[:-1])

    def _read(self, key: str, image_id: ImageId) -> Arrays:
        stem = os.path.splitext(key)[0]
        path = self.path / key
        boxes_path, fc_path = self._boxes / f"{stem}.npy", self._fc / f"{stem}.npy"
        if path.suffix == ".npy":
            features = read_npy(path)
        else:
            with Npz(path, str(path)) as archive:
                features = archive[_feature_name(archive)]
        boxes = read_npy(boxes_path) if self.need_boxes else None
        if boxes is not None and self._in_pixels:
            boxes = relative_boxes(
                boxes, *self.size_of(image_id, str(boxes_path)), f"{boxes_path}: boxes"
            )
        fc = read_npy(fc_path) if fc_path.is_file() else None
        names = f"{path}: features", f"{boxes_path}: boxes", f"{fc_path}: fc"
        return Arrays(features, boxes, fc, names)


def attention_folders(root: pathlib.Path) -> list[pathlib.Path]:
    """Folders of features below `root`: `cocobu_att` first, then other `*_att`."""
    found = sorted(folder for folder in root.glob("*_att") if folder.is_dir())
    return sorted(found, key=lambda folder: folder.name != "cocobu_att")


def _feature_name(archive: Npz) -> str:
    """Name of the features in an archive of self-critical training codes: `feat`."""
    names = archive.names()
    return next((name for name in _NPZ_NAMES if name in names), _NPZ_NAMES[0])
