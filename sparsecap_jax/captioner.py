"""For people who only want captions: load a run directory, caption features or photos."""

import functools
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from sparsecap_jax.captioning.batches import Caption, best_caption, caption_batches
from sparsecap_jax.captioning.search_options import SearchOptions, image_options
from sparsecap_jax.data.batches import make_eval_batches
from sparsecap_jax.data.features import FeatureStore, RegionFeatures, validated
from sparsecap_jax.data.karpathy import ImageId, Record
from sparsecap_jax.data.stores import open_store
from sparsecap_jax.decoding import make_ensemble
from sparsecap_jax.errors import ConfigError, DataError
from sparsecap_jax.models import MODELS
from sparsecap_jax.photos.extractors import Extractor, remake_extractor
from sparsecap_jax.photos.images import open_photo
from sparsecap_jax.runs.directory import LoadedRun, load_run
from sparsecap_jax.runs.published import find

Arrays = np.ndarray | Sequence[np.ndarray]


class Captioner:
    """A trained captioner, or an ensemble of several.

    >>> captioner = Captioner.load("runs/demo/supermask")
    >>> captioner.caption(features, boxes, beam_size=5).text
    >>> next(Captioner.load("flickr8k-mini").caption_photos(["photo.jpg"])).text

    All methods take the options of `SearchOptions` by name; without any, they search with five
    beams. Every search and every shape of a batch compiles once.

    Args:
        runs: what `training.run_dir.load_run` returns; of several, probabilities are averaged.

    Raises:
        ConfigError: models that differ in their tokens or features cannot be joined.
    """

    def __init__(self, *runs: LoadedRun):
        self.run = runs[0]
        for number, run in enumerate(runs[1:], 1):
            _check_alike(self.run, run, number)
        members = [(run.model, run.params) for run in runs]
        self.model, params = members[0] if len(runs) == 1 else make_ensemble(members)
        self._params = jax.device_put(params)
        self._max_length = min(run.config.max_seq_length for run in runs)
        self.needs_boxes = any(MODELS[run.config.model.name].needs_boxes for run in runs)

    @classmethod
    def load(cls, directory: str | pathlib.Path | Sequence[str | pathlib.Path]) -> "Captioner":
        """Load the best weights of a run directory, or of several as an ensemble.

        A name that is no folder is one of the captioners that come with the package:
        "flickr8k-mini".

        Raises:
            CheckpointError: there is no run there, or it is corrupt.
            ConfigError: the runs cannot be joined.
        """
        one = isinstance(directory, str | pathlib.Path)
        return cls(*(load_run(_existing(d)) for d in ([directory] if one else directory)))

    @property
    def config(self) -> Any:
        """The config of the run, of an ensemble's first run."""
        return self.run.config

    @property
    def feature_size(self) -> int:
        """Width D of the region features."""
        return self.config.data.feature_size

    def caption(
        self,
        features: Arrays,
        boxes: Arrays | None = None,
        fc: Arrays | None = None,
        *,
        attention: bool = False,
        **search: Any,
    ) -> Caption | list[Caption]:
        """Caption one image, or a batch; of several captions, the one of the best score.

        Args:
            features: float `[R, D]`, region features; or a list of them, one for each image.
            boxes: float `[R, 4]`, corners divided by width and height; some models need them.
            fc: float `[D]`, the image's feature; the mean over regions where not given.
            attention: whether captions come with the weights of the regions for each word.
            **search: see `SearchOptions`; the images of a batch have the ids 0, 1, ...

        Raises:
            DataError: wrong shapes, values that are not finite, or missing boxes.
            ConfigError: options that are out of range or contradict each other.
        """
        found = self.candidates(features, boxes, fc, attention=attention, **search)
        if _is_batch(features):
            return [best_caption(captions) for captions in found]
        return best_caption(found)

    def candidates(
        self,
        features: Arrays,
        boxes: Arrays | None = None,
        fc: Arrays | None = None,
        *,
        attention: bool = False,
        **search: Any,
    ) -> list[Caption] | list[list[Caption]]:
        """All captions that a search finds, beams best first; arguments as in `caption`."""
        batch = _is_batch(features)
        given = [one if batch or one is None else [one] for one in (features, boxes, fc)]
        store = _InMemory(*given, self.feature_size, self.needs_boxes)
        if not store.images:
            return []
        found = self.caption_store(store, range(len(store.images)), attention=attention, **search)
        captions = [captions for _, captions in found]
        return captions if batch else captions[0]

    @functools.cached_property
    def extractor(self) -> Extractor:
        """What turns photos into the features that the run was trained on.

        Raises:
            ConfigError: the run does not say, or the extractor is not installed.
        """
        return remake_extractor(self.run.extractor)

    def caption_photos(
        self,
        photos: Iterable[str | os.PathLike | Image.Image],
        *,
        batch_size: int = 16,
        **search: Any,
    ) -> Iterator[Caption]:
        """Caption photos: files (JPEG or PNG), or upright pictures in memory.

        Args:
            photos: any number of them.
            batch_size: photos at a time.
            **search: see `SearchOptions`; by default what the run comes with (`search.json`).

        Yields:
            A caption for each photo, in order.

        Raises:
            DataError: a file cannot be read as a photo.
            ConfigError: the extractor cannot be made, or options contradict each other.
        """
        waiting = iter(photos)
        while batch := list(itertools.islice(waiting, batch_size)):
            opened = [
                p.convert("RGB") if isinstance(p, Image.Image) else open_photo(p) for p in batch
            ]
            found = self.extractor(opened)
            yield from self.caption(
                [regions.features for regions in found],
                [regions.boxes for regions in found],
                [regions.fc for regions in found],
                **{**(self.run.search if "search" not in search else {}), **search},
            )

    def caption_folder(
        self, directory: str | pathlib.Path, **options: Any
    ) -> Iterator[tuple[ImageId, list[Caption]]]:
        """Caption every image of a folder of features, batch by batch.

        Args:
            directory: file or folder of any format that `stores.open_store` knows.
            **options: see `caption_store`.

        Yields:
            `(image id, captions)`.

        Raises:
            DataError: there are no features, or some are malformed.
        """
        store = open_store(directory, self.feature_size, self.needs_boxes)
        yield from self.caption_store(store, store.image_ids(), **options)

    def caption_store(
        self,
        store: FeatureStore,
        image_ids: Sequence[ImageId],
        *,
        batch_size: int = 50,
        attention: bool = False,
        **search: Any,
    ) -> Iterator[tuple[ImageId, list[Caption]]]:
        """Caption many images, batch by batch.

        Args:
            store: their features.
            image_ids: which, in the order of the result.
            batch_size: images decoded at a time.
            attention: whether captions come with the weights of the regions for each word.
            **search: see `SearchOptions`.

        Yields:
            `(image id, captions)`, all captions that the search found, beams best first.

        Raises:
            DataError: features are missing (all at once) or malformed.
            ConfigError: options that are out of range or contradict each other.
        """
        wanted = SearchOptions(**search)
        tokenizer = self.run.tokenizer
        options = wanted.decode_options(tokenizer, self._max_length)
        batches = make_eval_batches(
            [Record(image_id) for image_id in image_ids],
            store,
            batch_size=min(batch_size, len(image_ids)),
            region_buckets=self.config.data.region_buckets,
        )
        found = caption_batches(
            self.model,
            self._params,
            batches,
            tokenizer,
            options,
            image_options(wanted, tokenizer, options, image_ids),
            attention=attention,
        )
        for index, captions in found:
            yield image_ids[index], captions


def _existing(directory: str | pathlib.Path) -> str | pathlib.Path:
    """A folder as it is; else the captioner of the package that has this name."""
    plain = isinstance(directory, str) and os.path.basename(directory) == directory
    return find(directory) if plain and not os.path.isdir(directory) else directory


def _check_alike(first: LoadedRun, other: LoadedRun, number: int) -> None:
    """Refuse an ensemble whose members read or say different things."""
    if not first.tokenizer.same_ids(other.tokenizer):
        raise ConfigError(f"ensemble: run {number} has another tokenizer than run 0")
    sizes = [run.config.data.feature_size for run in (first, other)]
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"ensemble: run {number}: feature_size: found {sizes[1]}, expected {sizes[0]} as in "
            "run 0"
        )


def _is_batch(features: Any) -> bool:
    return isinstance(features, list | tuple)


def _array(value: Any) -> np.ndarray | None:
    return None if value is None else np.asarray(value)


class _InMemory:
    """A store of given arrays; ids count from 0."""

    def __init__(self, features, boxes, fc, feature_size: int, need_boxes: bool):
        self.feature_size = feature_size
        self.images = []
        for name, given in (("boxes", boxes), ("fc", fc)):
            if given is not None and len(given) != len(features):
                raise DataError(f"{name}: found {len(given)} images, expected {len(features)}")
        for number, one in enumerate(features):
            names = tuple(f"image {number}: {name}" for name in ("features", "boxes", "fc"))
            if need_boxes and (boxes is None or boxes[number] is None):
                raise DataError(f"{names[1]}: found none, but the model needs them")
            rest = [None if all_ is None else _array(all_[number]) for all_ in (boxes, fc)]
            self.images.append(validated(np.asarray(one), *rest, feature_size, names))

    def __getitem__(self, image_id: ImageId) -> RegionFeatures:
        return self.images[image_id]

    def num_regions(self, image_id: ImageId) -> int:
        return len(self.images[image_id].features)

    def check(self, image_ids: Iterable[ImageId]) -> None:
        """Nothing can be missing."""
