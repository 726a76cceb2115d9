"""Folders that tensorflow-datasets prepared with `coco_builder.CaptionFeatures`."""

import importlib
import pathlib
from typing import Any

from sparsecap_jax.data.features import Arrays, IndexedStore
from sparsecap_jax.data.karpathy import split_ids
from sparsecap_jax.data.records import ImageId
from sparsecap_jax.errors import DataError
from sparsecap_jax.files import read_json

INFO = "dataset_info.json"
SPLIT = "metadata.json"
_CLASS_KEYS = {"pythonClassName", "python_class_name", "type"}
_TRUSTED = "tensorflow_datasets.core.features."


class TfdsStore(IndexedStore):
    """One example per image, read by `tfds.builder_from_directory(path).as_data_source`."""

    unit = "example"

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        for name in (INFO, SPLIT):
            if not (self.path / name).is_file():
                raise DataError(f"{self.path}: {name} is missing; expected what tfds prepared")

    def _load_index(self) -> dict[ImageId, tuple[str, int]]:
        splits = split_ids(self.path / SPLIT)
        for name, ids in splits.items():
            count = len(self._opened(name, self._source)) if ids else 0
            if count != len(ids):
                raise DataError(
                    f"{self.path}: {count} examples of {name}, but {SPLIT} has {len(ids)}"
                )
        return {i: (name, n) for name, ids in splits.items() for n, i in enumerate(ids)}

    def _count(self, key: tuple[str, int], image_id: ImageId) -> int:
        return len(self._read(key, image_id).features)

    def _read(self, key: tuple[str, int], image_id: ImageId) -> Arrays:
        name, number = key
        where = f"{self.path}: {name}[{number}]"
        try:
            example = self._opened(name, self._source)[number]
            stored_id, features, fc = (example[k] for k in ("image_id", "features", "fc"))
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(f"{where}: cannot be read: {reason}") from None
        if stored_id != str(image_id).encode():
            raise DataError(f"{where}: is image {stored_id!r}, expected {image_id!r}")
        boxes = example.get("boxes") if self.need_boxes else None
        if self.need_boxes and boxes is None:
            raise DataError(f"{where}: boxes are needed, and it was prepared without")
        names = f"{where}: features", f"{where}: boxes", f"{where}: fc"
        return Arrays(features, boxes, fc, names)

    def _source(self, name: str) -> Any:
        _check_classes(self.path / "features.json")
        tfds = importlib.import_module("tensorflow_datasets")
        try:
            return tfds.builder_from_directory(str(self.path)).as_data_source(split=name)
        except Exception as error:  # tfds has no errors of its own
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise DataError(f"{self.path}: tfds cannot open {name}: {reason}") from None


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


def is_tfds_folder(path: pathlib.Path) -> bool:
    """Return whether tensorflow-datasets prepared the folder."""
    return (path / INFO).is_file()
