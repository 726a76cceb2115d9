"""Folders of `.npz` as bottom-up-attention.pytorch writes them: one archive per image."""

import os
from collections.abc import Iterable

from sparsecap_jax.data.indexed_store import Arrays, IndexedStore
from sparsecap_jax.data.npy import Npz
from sparsecap_jax.data.records import ImageId, image_id_from_filename
from sparsecap_jax.data.regions import relative_boxes
from sparsecap_jax.errors import DataError


class NpzFolderStore(IndexedStore):
    """`ID.npz` with `x` [R, D], `bbox` [R, 4] in pixels, `num_bbox`, `image_h` and `image_w`.

    Names may be those of the pictures (`COCO_val2014_000000391895.jpg.npz`). `info`, a pickled
    dict, is never looked at.
    """

    unit = "file"

    def _load_index(self) -> dict[ImageId, str]:
        names: dict[ImageId, str] = {}
        for name in _npz_names(self.path):
            other = names.setdefault(image_id_from_filename(_picture(name)), name)
            if other != name:
                raise DataError(f"{self.path}: {other} and {name} are one image id")
        if not names:
            raise DataError(f"{self.path}: holds no .npz")
        return names

    def _count(self, key: str, image_id: ImageId) -> int:
        path = self.path / key
        with Npz(path, str(path)) as archive:
            return _regions(archive, archive.shape("x")[0], str(path))

    def _read(self, key: str, image_id: ImageId) -> Arrays:
        path = str(self.path / key)
        with Npz(self.path / key, path) as archive:
            features = archive["x"]
            count = _regions(archive, len(features) if features.ndim else 0, path)
            boxes = None
            if self.need_boxes:
                width, height = archive.number("image_w"), archive.number("image_h")
                boxes = relative_boxes(archive["bbox"][:count], width, height, f"{path}: bbox")
        return Arrays(features[:count], boxes, None, (f"{path}: x", f"{path}: bbox", path))


def _regions(archive: Npz, rows: int, where: str) -> int:
    """Number of regions: `num_bbox`, of which `x` may have more rows."""
    count = archive.number("num_bbox") if "num_bbox" in archive.names() else rows
    if not 0 < count <= rows:
        raise DataError(f"{where}: num_bbox is {count}, but x has {rows} rows")
    return count


def _npz_names(path) -> Iterable[str]:
    try:
        names = os.listdir(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    return sorted(name for name in names if name.endswith(".npz"))


def _picture(name: str) -> str:
    stem = name.removesuffix(".npz")
    return stem if stem.lower().endswith((".jpg", ".jpeg", ".png")) else f"{stem}.jpg"
