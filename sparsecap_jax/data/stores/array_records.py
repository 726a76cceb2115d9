"""Stores of ArrayRecord shards: the package's own, and folders of tensorflow-datasets.

The package's own has a manifest:

    manifest.json                      options, shards, image ids, checksums
    features-00000.array_record, ...   one record per image

A record is `SCF1`, the length of a JSON header (uint32, little-endian), the header
(`{"id", "dtype", "shape", "boxes", "fc"}`), and the raw bytes of features, boxes and fc.
`sparsecap prepare_data convert` writes it.
"""

import json
import pathlib
import struct
from typing import Any

import numpy as np

from sparsecap_jax.data.features import Arrays, IndexedStore, RegionFeatures, rounded
from sparsecap_jax.data.karpathy import split_ids
from sparsecap_jax.data.records import (
    ImageId,
    check_path,
    data_error,
    entries,
    field,
    normalize_id,
)
from sparsecap_jax.errors import DataError
from sparsecap_jax.files import read_json

MANIFEST = "manifest.json"
VERSION = 1
DTYPES = {"float32": "<f4", "float16": "<f2"}
TFDS_INFO = "dataset_info.json"
TFDS_SPLIT = "metadata.json"
_MAGIC = b"SCF1"
_PREFIX = struct.Struct("<4sI")
_CLASS_KEYS = {"pythonClassName", "python_class_name", "type"}
_TRUSTED = "tensorflow_datasets.core.features."


def encode(image_id: ImageId, image: RegionFeatures, dtype: str) -> bytes:
    """Return one record; features in `dtype` of `DTYPES`, where they must fit, the rest float32."""
    features = rounded(image.features, DTYPES[dtype], image_id)
    header = {"id": image_id, "dtype": dtype, "shape": features.shape}
    header |= {"boxes": image.boxes is not None, "fc": True}
    text = json.dumps(header, separators=(",", ":")).encode()
    others = (array.astype("<f4") for array in (image.boxes, image.fc) if array is not None)
    arrays = b"".join(array.tobytes() for array in (features, *others))
    return _PREFIX.pack(_MAGIC, len(text)) + text + arrays


def decode(record: bytes, where: str) -> tuple[ImageId, np.ndarray, np.ndarray | None, np.ndarray]:
    """Return image id, features, boxes and fc of a record; DataError where it is malformed."""
    faults = struct.error, ValueError, KeyError, TypeError, RecursionError
    with data_error(f"{where}: not a record of features", *faults):
        magic, length = _PREFIX.unpack_from(record)
        header = json.loads(record[_PREFIX.size : _PREFIX.size + length])
        image_id, (rows, width) = header["id"], header["shape"]
        if not all(type(n) is int and n > 0 for n in (rows, width)):
            raise ValueError(f"shape {[rows, width]!r:.80}")
        dtype = np.dtype(DTYPES[header["dtype"]])
        sizes = [rows * width * dtype.itemsize, rows * 16 * bool(header["boxes"]), 4 * width]
    start = _PREFIX.size + length
    if magic != _MAGIC or len(record) != start + sum(sizes):
        raise DataError(f"{where}: not a record of features: {len(record)} bytes, {header!r:.80}")
    features = np.frombuffer(record, dtype, rows * width, start).reshape(rows, width)
    boxes = None
    if header["boxes"]:
        boxes = np.frombuffer(record, "<f4", rows * 4, start + sizes[0]).reshape(rows, 4)
    return image_id, features, boxes, np.frombuffer(record, "<f4", width, start + sum(sizes[:2]))


class ArrayRecordStore(IndexedStore):
    """A folder of `sparsecap prepare_data convert`, of the same width, with the boxes needed."""

    unit = "record"

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.manifest = load_manifest(self.path)
        width = self.manifest["feature_size"]
        if width != self.feature_size:
            found = f"features are {width} wide, expected feature_size {self.feature_size}"
            raise DataError(f"{self.path}: {found}")
        if self.need_boxes and not self.manifest["boxes"]:
            raise DataError(f"{self.path}: boxes are needed, and it was written without")

    def _load_index(self) -> dict[ImageId, tuple[str, int]]:
        shards = self.manifest["shards"]
        for shard in shards:
            self._counts.update(zip(shard["ids"], shard["regions"], strict=True))
        return {i: (shard["file"], n) for shard in shards for n, i in enumerate(shard["ids"])}

    def _count(self, key: tuple[str, int], image_id: ImageId) -> int:
        return self._counts[image_id]

    def _read(self, key: tuple[str, int], image_id: ImageId) -> Arrays:
        name, number = key
        where = f"{self.path / name}: record {number}"
        with data_error(where, RuntimeError, ValueError, IndexError):
            (record,) = self._opened(name, self._reader).read([number])
        stored_id, features, boxes, fc = decode(record, where)
        if normalize_id(stored_id) != image_id:
            raise DataError(f"{where}: is image {stored_id!r}, expected {image_id!r}")
        return Arrays(features, boxes, fc, where)

    def _reader(self, name: str) -> Any:
        from array_record.python.array_record_module import ArrayRecordReader

        path = self.path / name
        if not path.is_file():
            raise DataError(f"{path}: no such file, but {MANIFEST} lists it")
        return ArrayRecordReader(str(path), "readahead_buffer_size:0")


def load_manifest(directory: pathlib.Path) -> dict[str, Any]:
    """Read `manifest.json`; DataError where it is missing, of another version, or malformed."""
    path = directory / MANIFEST
    manifest = read_json(path, "the manifest of a finished conversion")
    where = f"{path}: top level"
    if field(manifest, "version", int | str, where) != VERSION:
        raise DataError(f"{path}: version {manifest['version']!r}; this release reads {VERSION}")
    width = field(manifest, "feature_size", int | str, where)
    if type(width) is not int or width < 1:
        raise DataError(f"{path}: feature_size: expected a width, found {width!r:.80}")
    if not isinstance(manifest.get("boxes"), bool):
        raise DataError(f"{path}: boxes: expected true or false, found {manifest.get('boxes')!r}")
    for place, shard in entries(manifest, "shards", path):
        check_shard(shard, place)
    return manifest


def check_shard(shard: Any, where: str) -> None:
    """Check the description of a shard, and normalize its ids; DataError where it is malformed."""
    check_path(field(shard, "file", str, where), f"{where}.file")
    ids, regions = field(shard, "ids", list, where), field(shard, "regions", list, where)
    known = all(isinstance(i, int | str) for i in ids)
    known = known and all(type(n) is int and n > 0 for n in regions)
    if len(ids) != len(regions) or not known:
        raise DataError(f"{where}: {len(ids)} ids and {len(regions)} numbers of regions")
    shard["ids"] = [normalize_id(image_id) for image_id in ids]


class TfdsStore(IndexedStore):
    """One example per image, read by `tfds.builder_from_directory(path).as_data_source`."""

    unit = "example"

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        for name in (TFDS_INFO, TFDS_SPLIT):
            if not (self.path / name).is_file():
                raise DataError(f"{self.path}: {name} is missing; expected what tfds prepared")

    def _load_index(self) -> dict[ImageId, tuple[str, int]]:
        splits = split_ids(self.path / TFDS_SPLIT)
        for name, ids in splits.items():
            count = len(self._opened(name, self._source)) if ids else 0
            if count != len(ids):
                raise DataError(
                    f"{self.path}: {count} examples of {name}, but {TFDS_SPLIT} has {len(ids)}"
                )
        return {i: (name, n) for name, ids in splits.items() for n, i in enumerate(ids)}

    def _read(self, key: tuple[str, int], image_id: ImageId) -> Arrays:
        name, number = key
        where = f"{self.path}: {name}[{number}]"
        faults = RuntimeError, ValueError, KeyError, TypeError
        with data_error(f"{where}: cannot be read", *faults):
            example = self._opened(name, self._source)[number]
            stored_id, features, fc = (example[k] for k in ("image_id", "features", "fc"))
        if stored_id != str(image_id).encode("utf-8", "surrogatepass"):
            raise DataError(f"{where}: is image {stored_id!r}, expected {image_id!r}")
        boxes = example.get("boxes") if self.need_boxes else None
        if self.need_boxes and boxes is None:
            raise DataError(f"{where}: boxes are needed, and it was prepared without")
        return Arrays(features, boxes, fc, where)

    def _source(self, name: str) -> Any:
        import tensorflow_datasets as tfds

        _check_classes(self.path / "features.json")
        # tfds has no errors of its own.
        with data_error(f"{self.path}: tfds cannot open {name}", Exception):
            return tfds.builder_from_directory(str(self.path)).as_data_source(split=name)


def _check_classes(path: pathlib.Path) -> None:
    """Raise a DataError unless all classes that features.json names are of tfds itself.

    The loader of tfds imports the module of any other class.
    """
    nodes = [read_json(path) if path.exists() else {}]
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            for key in _CLASS_KEYS & node.keys():
                name = node[key]
                if isinstance(name, str) and "." in name and not name.startswith(_TRUSTED):
                    raise DataError(f"{path}: {key} is {name!r}; expected a class of {_TRUSTED}*")
        nodes += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
