"""Captions and region features as a tensorflow-datasets builder, without TensorFlow.

    from sparsecap_jax.data.coco_builder import CaptionFeatures
    builder = CaptionFeatures(data_dir="data/tfds", config=CaptionConfig(feature_size=2048))
    builder.download_and_prepare(download_config=DownloadConfig(manual_dir="data/coco"))
    builder.as_data_source(split="train")[0]  # {"image_id": b"391895", "features": ..., ...}

The folder that it prepares is a feature store like any other (`stores.open_store`), and
`metadata.json` in it is a Karpathy split, so that `config.data.name = "tfds"` trains on it.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from sparsecap_jax.data.datasets import DATASETS, Source
from sparsecap_jax.data.karpathy import to_karpathy
from sparsecap_jax.data.records import Record
from sparsecap_jax.data.stores import open_store
from sparsecap_jax.errors import ConfigError


@dataclasses.dataclass
class CaptionConfig(tfds.core.BuilderConfig):
    """Content of the manual directory.

    Attributes:
        name: names the folder that is prepared.
        dataset: a key of `sparsecap_jax.data.datasets.DATASETS`.
        split_json: the dataset's main file, "" for the usual one.
        features: file or folder of features in any format, relative to the manual directory.
        image_sizes: see `stores.open_store`; relative too.
        feature_size: width D of the features.
        boxes: whether to keep boxes; every image needs them then.
    """

    name: str = "coco"
    dataset: str = "karpathy"
    split_json: str = ""
    features: str = ""
    image_sizes: str = ""
    feature_size: int = 2048
    boxes: bool = False


class CaptionFeatures(tfds.core.GeneratorBasedBuilder):
    """One example per image: its features, boxes, fc, captions and raw captions."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put the captions (dataset_coco.json: sparsecap prepare_data coco_captions makes it) and "
        "the region features, in any format of docs/data.md, into the manual directory."
    )

    def __init__(self, *, config: Any = None, file_format: str = "array_record", **options: Any):
        """Take the options of `tfds.core.DatasetBuilder`; ConfigError for other file formats."""
        if str(getattr(file_format, "value", file_format)) != "array_record":
            raise ConfigError(
                f"file_format is {file_format!r}; expected 'array_record': the others need "
                "TensorFlow, and cannot be read in random order"
            )
        super().__init__(config=config or CaptionConfig(), file_format=file_format, **options)

    def _info(self) -> tfds.core.DatasetInfo:
        """Return the types of an example; the metadata holds the split."""
        config: Any = self.builder_config
        features = {
            "image_id": tfds.features.Text(),
            "features": tfds.features.Tensor(shape=(None, config.feature_size), dtype=np.float32),
            "fc": tfds.features.Tensor(shape=(config.feature_size,), dtype=np.float32),
            "captions": tfds.features.Sequence(tfds.features.Text()),
            "raw": tfds.features.Sequence(tfds.features.Text()),
        }
        if config.boxes:
            features["boxes"] = tfds.features.Tensor(shape=(None, 4), dtype=np.float32)
        return tfds.core.DatasetInfo(
            builder=self,
            description="Captions and region features of images.",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,  # the pipeline shuffles; places of images must be known
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        """Open the manual directory; splits without images are left out."""
        config: Any = self.builder_config
        directory = dl_manager.manual_dir
        contents = DATASETS[config.dataset](Source(directory, config.split_json))
        splits, features = contents.splits, directory / config.features
        sizes = config.image_sizes and directory / config.image_sizes
        stored = open_store(features, config.feature_size, config.boxes, sizes=sizes)
        store = contents.extend(stored)
        store.check([record.image_id for records in splits.values() for record in records])
        self.info.metadata.update(to_karpathy(splits, config.name))
        kept = {name: records for name, records in splits.items() if records}
        return {name: self._generate_examples(store, records) for name, records in kept.items()}

    def _generate_examples(
        self, store: Any, records: list[Record]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the examples of a split in the order of its records."""
        for number, record in enumerate(records):
            image = store[record.image_id]
            example = {
                "image_id": str(record.image_id),
                "features": image.features,
                "fc": image.fc,
                "captions": list(record.captions),
                "raw": list(record.raw),
            }
            if image.boxes is not None:
                example["boxes"] = image.boxes
            yield number, example
