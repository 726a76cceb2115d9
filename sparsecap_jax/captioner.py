"""Captions from a trained run in two lines: of region features, of photos, of whole folders."""

import functools
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from sparsecap_jax.captioning.batches import Caption, best_caption, caption_batches
from sparsecap_jax.captioning.consensus import Consensus
from sparsecap_jax.captioning.engines import (
    BACKENDS,
    Automatic,
    Compiled,
    Engine,
    Sparse,
    has_accelerator,
)
from sparsecap_jax.captioning.image_options import decode_options, image_options
from sparsecap_jax.captioning.search import check_names, search_options
from sparsecap_jax.data.batches import make_eval_batches
from sparsecap_jax.data.extractor_notes import check_features
from sparsecap_jax.data.features import FeatureStore
from sparsecap_jax.data.in_memory import InMemoryFeatures
from sparsecap_jax.data.karpathy import ImageId, Record
from sparsecap_jax.data.stores import open_store
from sparsecap_jax.errors import CheckpointError, ConfigError
from sparsecap_jax.photos.extractors import Extractor, open_for, remake_extractor
from sparsecap_jax.photos.images import Photo
from sparsecap_jax.runs.finished import (
    FinishedRun,
    has_sparse_runtime,
    load_finished,
    sparse_fields,
)
from sparsecap_jax.runs.published import resolve_run
from sparsecap_jax.settings import nearest
from sparsecap_jax.sparse.models import SPARSE_MODELS, SparseEnsemble, make_sparse_model
from sparsecap_jax.trees import checksum

Arrays = np.ndarray | Sequence[np.ndarray]


class Captioner:
    """A trained captioner, or an ensemble of several.

    >>> captioner = Captioner.load("runs/demo/supermask")
    >>> captioner.caption(features, boxes, beam_size=5).text
    >>> next(Captioner.load("flickr8k").caption_photos(["photo.jpg"])).text

    All methods take the options of `SearchOptions` by name; without any, they search with five
    beams. With XLA, each search compiles once for each shape of a batch.

    Args:
        runs: results of `runs.directory.load_run`, or of `runs.finished.load_finished` (sparse
            runtime alone); the probabilities of several are averaged.
        backend: "xla", "sparse", or "auto" for whichever should be faster, see
            docs/sparse_runtime.md.

    Raises:
        ConfigError: models that differ in their tokens or features cannot be joined.
    """

    def __init__(self, *runs: Any, backend: str = "xla"):
        if backend not in BACKENDS:
            raise ConfigError(f"backend is {backend!r}; {nearest(backend, BACKENDS)}")
        self._runs, first = runs, runs[0]
        for number, run in enumerate(runs[1:], 1):
            if not first.tokenizer.same_ids(run.tokenizer):
                raise ConfigError(f"ensemble: run {number} has another tokenizer than run 0")
            size, expected = run.config.data.feature_size, f"{self.feature_size} as in run 0"
            if size != self.feature_size:
                raise ConfigError(
                    f"ensemble: run {number}: feature_size: found {size}, expected {expected}"
                )
        self._max_length = min(run.config.max_seq_length for run in runs)
        self.needs_boxes = any(getattr(run.model, "needs_boxes", False) for run in runs)
        self._engine = self._make_engine(backend)

    @classmethod
    def load(
        cls,
        directory: str | pathlib.Path | Sequence[str | pathlib.Path],
        *,
        backend: str = "auto",
    ) -> "Captioner":
        """Load the best weights of a run directory or a model file, or of several as an ensemble.

        Instead of a directory, the name of a captioner that comes with the package will do, such as
        "flickr8k-mini". With finished weights the sparse runtime needs no JAX.

        Raises:
            CheckpointError: there is no such run, or it is corrupt.
            ConfigError: the runs cannot be joined, or "sparse" has none of their models.
        """
        members = [directory] if isinstance(directory, str | pathlib.Path) else directory
        folders = [resolve_run(member) for member in members]
        sparse = backend == "sparse" or (backend == "auto" and not has_accelerator())
        if sparse and all(map(has_sparse_runtime, folders)):
            try:
                return cls(*map(load_finished, folders), backend=backend)
            except CheckpointError:
                if backend == "sparse":
                    raise  # else let `load_run` find and name the fault
        from sparsecap_jax.runs.directory import load_run

        return cls(*map(load_run, folders), backend="xla" if backend == "auto" else backend)

    @functools.cached_property
    def run(self) -> Any:
        """The run, or an ensemble's first run, as `runs.directory.load_run` returns it."""
        return self._loaded()[0]

    @property
    def config(self) -> Any:
        """Config of the run, or of an ensemble's first run."""
        return self._runs[0].config

    def _loaded(self) -> list[Any]:
        from sparsecap_jax.runs.directory import load_run

        loaded = [load_run(r.directory) if isinstance(r, FinishedRun) else r for r in self._runs]
        for run in self._runs:
            if isinstance(run, FinishedRun):
                run.check_unchanged()
        return loaded

    def _make_engine(self, backend: str) -> Engine:
        sparse = all(run.config.model.name in SPARSE_MODELS for run in self._runs)
        if backend == "xla" or (backend == "auto" and (has_accelerator() or not sparse)):
            return self._compile()
        models = [
            run.model
            if isinstance(run, FinishedRun)
            else make_sparse_model(sparse_fields(run.config, run.tokenizer.vocab_size), run.params)
            for run in self._runs
        ]
        engine = Sparse(models[0] if len(models) == 1 else SparseEnsemble(models))
        return engine if backend == "sparse" else Automatic(engine, self._compile)

    def _compile(self) -> Compiled:
        import jax

        from sparsecap_jax.decoding import make_ensemble, prepare

        members = [(run.model, run.params) for run in self._loaded()]
        model, params = members[0] if len(members) == 1 else make_ensemble(members)
        params = jax.device_put(params)
        return Compiled(model, params, prepare(model, params))

    @property
    def checksum(self) -> int:
        """Checksum of the weights, of all members of an ensemble."""
        total = 0
        for run in self._runs:
            total = checksum(run.params, total)
        return total

    @property
    def feature_size(self) -> int:
        """Width D of the region features."""
        return self.config.data.feature_size

    @property
    def search(self) -> dict[str, Any]:
        """Options of `SearchOptions` that photos are captioned with by default (`search.json`)."""
        return dict(self._runs[0].search)

    def check_features(self, directory: str | os.PathLike) -> None:
        """Refuse a folder of features that another extractor made than the runs were trained on.

        Raises:
            DataError: their `extractor.json` differ; nothing is known where one is missing.
        """
        for run in self._runs:
            check_features(run.extractor, directory)

    def check_search(self, **search: Any) -> int:
        """Return the number of rows that a search keeps for an image.

        These are its captions, and the samples of a consensus; with required words a beam search
        has as many captions for each state of what is still missing.

        Args:
            **search: see `SearchOptions`.

        Raises:
            ConfigError: options that are out of range, contradict each other, or do not fit the
                tokenizer.
        """
        in_words, tokenizer = search_options(search), self._runs[0].tokenizer
        options = decode_options(in_words, tokenizer, self._max_length)
        required = image_options(in_words, tokenizer, options, [0])["required"]
        by_state = required is not None and options.method == "beam" and options.num_groups == 1
        rows = options.rows * (required.default.shape[1] if by_state else 1)
        return rows + in_words.consensus

    def caption(
        self,
        features: Arrays,
        boxes: Arrays | None = None,
        fc: Arrays | None = None,
        *,
        attention: bool = False,
        **search: Any,
    ) -> Caption | list[Caption]:
        """Caption one image, or a batch; of several captions, return the one of the best score.

        Args:
            features: float `[R, D]`, region features; or a list of them, one for each image.
            boxes: float `[R, 4]`, corners divided by width and height; some models need them.
            fc: float `[D]`, feature of the whole image; by default the mean over regions.
            attention: whether captions come with the weights of the regions for each word.
            **search: see `SearchOptions`; the images of a batch have the ids 0, 1, ...

        Raises:
            DataError: wrong shapes, values that are not finite, or missing boxes.
            ConfigError: options that are out of range or contradict each other.
        """
        candidates = self._candidates(features, boxes, fc, attention=attention, **search)
        best = [best_caption(captions) for captions in candidates]
        return best if isinstance(features, list | tuple) else best[0]

    def candidates(
        self, features: Arrays, boxes: Arrays | None = None, fc: Arrays | None = None, **search: Any
    ) -> list[Caption] | list[list[Caption]]:
        """Return all captions that a search finds, best beams first; arguments as in `caption`."""
        candidates = self._candidates(features, boxes, fc, **search)
        return candidates if isinstance(features, list | tuple) else candidates[0]

    def _candidates(self, features: Any, boxes: Any, fc: Any, **search: Any) -> list[list[Caption]]:
        """Return the captions of each image, of one as of a batch."""
        batch = isinstance(features, list | tuple)
        arrays = [array if batch or array is None else [array] for array in (features, boxes, fc)]
        store = InMemoryFeatures(arrays, self.feature_size, self.needs_boxes)
        if not len(store):
            return []
        results = self.caption_store(store, range(len(store)), **search)
        return [captions for _, captions in results]

    @functools.cached_property
    def extractor(self) -> "Extractor":
        """Extractor of the features that the run was trained on.

        Raises:
            ConfigError: the run does not name it, or it is not installed.
        """
        return remake_extractor(self._runs[0].extractor)

    def caption_photos(
        self,
        photos: Photo | Iterable[Photo],
        *,
        batch_size: int = 16,
        **search: Any,
    ) -> Iterator[Caption]:
        """Caption photos: files, their bytes, or pictures in memory, as `open_photo` takes them.

        Args:
            photos: one or any number of them; a caption for each is yielded, in order.
                `photos.images.list_photos` lists those of a folder.
            batch_size: photos at a time.
            **search: see `SearchOptions`; by default the run's own (`search.json`). Also
                `attention`, see `caption`.

        Raises:
            DataError: a file cannot be read as a photo.
            ConfigError: the extractor cannot be made, or options contradict each other.
        """
        yield from map(best_caption, self.photo_candidates(photos, batch_size=batch_size, **search))

    def photo_candidates(
        self, photos: Photo | Iterable[Photo], *, batch_size: int = 16, **search: Any
    ) -> Iterator[list[Caption]]:
        """Yield all captions of each photo, best beams first; otherwise as `caption_photos`."""
        check_names({name: value for name, value in search.items() if name != "attention"})
        if "search" not in search:
            search = {**self.search, **search}
        single = isinstance(photos, str | os.PathLike | Image.Image | bytes)
        single = single or getattr(photos, "ndim", 0) in (2, 3)
        several: Any = [photos] if single else photos
        remaining = iter(several)
        while batch := list(itertools.islice(remaining, batch_size)):
            regions = self.extractor([open_for(self.extractor, photo) for photo in batch])
            yield from self._candidates(
                [image.features for image in regions],
                [image.boxes for image in regions],
                [image.fc for image in regions],
                **search,
            )

    def caption_folder(
        self, directory: str | pathlib.Path, **options: Any
    ) -> Iterator[tuple[ImageId, list[Caption]]]:
        """Caption every image of a folder of features; options and results as in `caption_store`.

        `directory` is a file or folder of any format that `stores.open_store` reads.

        Raises:
            DataError: there are no features, some are malformed, or another extractor made them.
        """
        self.check_features(directory)
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
        """Caption many images, and yield `(image id, captions)`: all captions, best beams first.

        Args:
            store: their features.
            image_ids: images to caption, in the order of the result.
            batch_size: images decoded at a time.
            attention: whether captions come with the weights of the regions for each word.
            **search: see `SearchOptions`.

        Raises:
            DataError: features are missing (all at once) or malformed.
            ConfigError: options that are out of range or contradict each other.
        """
        in_words, tokenizer = search_options(search), self._runs[0].tokenizer
        options = decode_options(in_words, tokenizer, self._max_length)
        if len(image_ids) == 0:
            return
        batches = make_eval_batches(
            [Record(image_id) for image_id in image_ids],
            store,
            batch_size=min(batch_size, len(image_ids)),
            region_buckets=self.config.data.region_buckets,
        )
        engine = self._engine
        if in_words.consensus:
            engine = Consensus(engine, tokenizer, in_words.consensus)
        results = caption_batches(
            engine,
            batches,
            tokenizer,
            options,
            image_options(in_words, tokenizer, options, image_ids),
            attention=attention,
        )
        for index, captions in results:
            yield image_ids[index], captions
