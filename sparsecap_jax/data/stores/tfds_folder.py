"""Folders that tensorflow-datasets prepared with `coco_builder.CaptionFeatures`."""

import pathlib
from typing import Any

from sparsecap_jax.data.features import Arrays, IndexedStore
from sparsecap_jax.data.karpathy import split_ids
from sparsecap_jax.data.records import ImageId, data_error
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

    def _read(self, key: tuple[str, int], image_id: ImageId) -> Arrays:
        name, number = key
        where = f"{self.path}: {name}[{number}]"
        faults = RuntimeError, ValueError, KeyError, TypeError
        with data_error(f"{where}: cannot be read", *faults):
            example = self._opened(name, self._source)[number]
            stored_id, features, fc = (example[k] for k in ("image_id", "features", "fc"))
        if stored_id != str(image_id).encode():
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
