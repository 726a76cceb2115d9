"""Feature stores of all published formats, behind one interface (see docs/data.md).

To add one: a subclass of `IndexedStore` that `STORES.register` takes, or that is named as
`MODULE:NAME` after `settings.use_plugin(MODULE)`.
"""

import os
import pathlib

from sparsecap_jax.arrays import npy_shape
from sparsecap_jax.data.features import ImageSizes, IndexedStore
from sparsecap_jax.data.records import (
    PICTURE_FORMATS,
    ImageId,
    by_id,
    checked_id,
    data_error,
    entries,
    field,
    find_pictures,
    image_id_from_filename,
)
from sparsecap_jax.data.stores.array_records import (
    MANIFEST,
    TFDS_INFO,
    ArrayRecordStore,
    TfdsStore,
    load_manifest,
)
from sparsecap_jax.data.stores.databases import (
    HDF5_SUFFIXES,
    Hdf5Store,
    LmdbStore,
    hdf5_files,
)
from sparsecap_jax.data.stores.folders import NpyFolderStore, NpzFolderStore, attention_folders
from sparsecap_jax.data.stores.tsv import TsvStore, tsv_files
from sparsecap_jax.errors import DataError
from sparsecap_jax.files import absent, read_json
from sparsecap_jax.settings import Registry

__all__ = [
    "STORES",
    "NpyFolderStore",
    "find_format",
    "load_image_sizes",
    "open_store",
    "stated_width",
]

STORES: Registry[type[IndexedStore]] = Registry(
    "data.features_format",
    {
        "array_record": ArrayRecordStore,
        "hdf5": Hdf5Store,
        "lmdb": LmdbStore,
        "npy": NpyFolderStore,
        "npz": NpzFolderStore,
        "tfds": TfdsStore,
        "tsv": TsvStore,
    },
    IndexedStore,
)
WIDTH = 2048
"""Usual width of features, that of bottom-up attention."""
_COCO_FILES = ("captions_*.json", "image_info_*.json", "instances_*.json")


def open_store(
    path: str | os.PathLike,
    feature_size: int = 2048,
    need_boxes: bool = False,
    *,
    sizes: ImageSizes | str | os.PathLike | None = None,
    format: str = "auto",
) -> IndexedStore:
    """Open a feature file or folder of any format.

    Args:
        path: the file or folder.
        feature_size: width D of the features; anything else is an error.
        need_boxes: read boxes too, and require them for every image.
        sizes: where boxes are in pixels and the format has no image sizes: (width, height) by id,
            or the path that `load_image_sizes` reads them from.
        format: a key of `STORES`, or "auto" to look.

    Raises:
        ConfigError: unknown format.
        DataError: nothing of a known format is there.
    """
    path = pathlib.Path(path)
    store = STORES[find_format(path) if format == "auto" else format]
    if isinstance(sizes, str | os.PathLike):
        sizes = load_image_sizes(sizes) if os.fspath(sizes) else None
    return store(path, feature_size, need_boxes, sizes)


def stated_width(path: str | os.PathLike, format: str = "auto") -> int:
    """Return the width D of features that lie in a file or folder.

    A converted folder and a folder of `.npy`, such as an extractor writes, state it; of other
    formats 2048, the usual width, is returned. Arguments and errors as in `open_store`.
    """
    path = pathlib.Path(path)
    kind = find_format(path) if format == "auto" else format
    if kind == "array_record":
        return load_manifest(path)["feature_size"]
    if kind == "npy":
        files = sorted(NpyFolderStore(path).path.glob("*.npy"))
        return (npy_shape(files[0])[-1:] or (WIDTH,))[0] if files else WIDTH
    return WIDTH


def find_format(path: pathlib.Path) -> str:
    """Return the key of `STORES` that fits a file or folder; DataError where none does."""
    if path.is_file():
        if path.suffix.lower() in HDF5_SUFFIXES:
            return "hdf5"
        if path.suffix in (".lmdb", ".mdb"):
            return "lmdb"
        if ".tsv" in path.suffixes[-2:]:
            return "tsv"
    elif path.is_dir():
        # Before the manifests of conversions: toy scenes have one of their own.
        if attention_folders(path / "bu") or attention_folders(path):
            return "npy"
        if (path / MANIFEST).is_file():
            return "array_record"
        if (path / TFDS_INFO).is_file():
            return "tfds"
        if (path / "data.mdb").is_file() or any(path.glob("*_att.lmdb")):
            return "lmdb"
        if tsv_files(path):
            return "tsv"
        if any(path.glob("*.npz")):
            return "npz"
        if hdf5_files(path):
            return "hdf5"
    else:
        raise DataError(absent(path, "features"))
    raise DataError(
        f"{path}: no features of a known format; expected bu/cocobu_att/, *.tsv, *.hdf5, "
        f"ID.npz, *.lmdb, or {MANIFEST} (see docs/data.md); `sparsecap prepare_data extract` makes "
        "them of photos"
    )


def load_image_sizes(path: str | os.PathLike) -> ImageSizes:
    """Read (width, height) by image id.

    Args:
        path: a JSON file of COCO's form (`{"images": [{"id", "width", "height"}]}`) or
            `{id: [width, height]}`; a folder of COCO's files (`annotations/`); or a folder of
            pictures, whose headers are read.

    Raises:
        DataError: `path` is none of these.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        return _from_json(path)
    files = sorted(file for pattern in _COCO_FILES for file in path.glob(pattern))
    if files:
        return {key: size for file in files for key, size in _from_json(file).items()}
    pictures = find_pictures(path)
    if not pictures:
        raise DataError(f"{path}: holds neither COCO's .json files nor pictures")
    return {image_id_from_filename(p.name): _picture_size(p) for p in pictures}


def _from_json(path: pathlib.Path) -> dict[ImageId, tuple[int, int]]:
    content = read_json(path, "image sizes")
    sizes: list[tuple[ImageId, tuple[int, int]]] = []
    if isinstance(content, dict) and "images" in content:
        for where, image in entries(content, "images", path):
            image_id = field(image, "id", int | str, where)
            checked_id(image_id, f"{where}.id")
            sizes.append((image_id, _size([image.get("width"), image.get("height")], where)))
    elif isinstance(content, dict):
        sizes = [(key, _size(value, f"{path}: {key}")) for key, value in content.items()]
    if not sizes:
        raise DataError(f"{path}: no image sizes; expected COCO's images or {{id: [w, h]}}")
    return by_id(sizes, path)


def _size(value: object, where: str) -> tuple[int, int]:
    match value:
        case [int(width), int(height)] if width > 0 and height > 0:
            return width, height
    raise DataError(f"{where}: expected width and height, found {value!r:.60}")


def _picture_size(path: pathlib.Path) -> tuple[int, int]:
    from PIL import Image

    with (
        data_error(f"{path}: not a picture", Exception),
        Image.open(path, formats=PICTURE_FORMATS) as picture,
    ):
        return picture.size
