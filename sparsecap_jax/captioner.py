"""For people who only want captions: load a run directory, caption features."""

import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from sparsecap_jax.data.batches import make_eval_batches
from sparsecap_jax.data.features import FeatureStore, RegionFeatures, validated
from sparsecap_jax.data.karpathy import ImageId, Record
from sparsecap_jax.evaluation.captioning import (
    Caption,
    caption_batches,
    decode_options,
    search_options,
)
from sparsecap_jax.models import MODELS
from sparsecap_jax.training.run_dir import LoadedRun, load_run


class Captioner:
    """A trained captioner.

    >>> captioner = Captioner.load("runs/demo/supermask")
    >>> captioner.caption(features, boxes, beam_size=5).text

    Args:
        run: what `training.run_dir.load_run` returns.
    """

    def __init__(self, run: LoadedRun):
        self.run = run
        self._params = jax.device_put(run.params)

    @classmethod
    def load(cls, directory: str | pathlib.Path) -> "Captioner":
        """Load the best weights of a run directory.

        Raises:
            CheckpointError: there is no run there, or it is corrupt.
        """
        return cls(load_run(directory))

    @property
    def config(self) -> Any:
        """The config of the run."""
        return self.run.config

    @property
    def needs_boxes(self) -> bool:
        """Whether the model reads boxes."""
        return MODELS[self.config.model.name].needs_boxes

    def caption(
        self,
        features: np.ndarray,
        boxes: np.ndarray | None = None,
        fc: np.ndarray | None = None,
        *,
        beam_size: int = 5,
        length_penalty: str = "",
    ) -> Caption:
        """Caption one image.

        Args:
            features: float `[R, D]`, its region features.
            boxes: float `[R, 4]`, corners divided by width and height; some models need them.
            fc: float `[D]`, the image's feature; the mean over regions where not given.
            beam_size: 1 for greedy search.
            length_penalty: "", "wu_<alpha>" or "avg_0".

        Raises:
            DataError: wrong shapes, values that are not finite, or missing boxes.
        """
        names = ("features", "boxes", "fc")
        checked = validated(features, boxes, fc, self.config.data.feature_size, names)
        store = _OneImage(checked, self.config.data.feature_size)
        _, caption = next(
            self.caption_store(
                store, [0], batch_size=1, beam_size=beam_size, length_penalty=length_penalty
            )
        )
        return caption

    def caption_store(
        self,
        store: FeatureStore,
        image_ids: Sequence[ImageId],
        *,
        batch_size: int = 50,
        beam_size: int = 5,
        length_penalty: str = "",
    ) -> Iterator[tuple[ImageId, Caption]]:
        """Caption many images, batch by batch.

        Args:
            store: their features.
            image_ids: which, in the order of the result.
            batch_size: images decoded at a time.
            beam_size: 1 for greedy search.
            length_penalty: "", "wu_<alpha>" or "avg_0".

        Yields:
            `(image id, caption)`.

        Raises:
            DataError: features are missing (all at once) or malformed.
        """
        batches = make_eval_batches(
            [Record(image_id) for image_id in image_ids],
            store,
            batch_size=min(batch_size, len(image_ids)),
            region_buckets=self.config.data.region_buckets,
        )
        search = search_options(beam_size, length_penalty)
        options = decode_options(self.run.tokenizer, self.config.max_seq_length, **search)
        found = caption_batches(self.run.model, self._params, batches, self.run.tokenizer, options)
        for index, captions in found:
            yield image_ids[index], captions[0]


class _OneImage:
    """A store of one image, whatever its id."""

    def __init__(self, image: RegionFeatures, feature_size: int):
        self._image = image
        self.feature_size = feature_size

    def __getitem__(self, image_id: ImageId) -> RegionFeatures:
        return self._image

    def num_regions(self, image_id: ImageId) -> int:
        return len(self._image.features)

    def check(self, image_ids: Iterable[ImageId]) -> None:
        """Nothing can be missing."""
