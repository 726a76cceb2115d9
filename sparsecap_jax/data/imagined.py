"""Imagined features: region features of an image of which only the captions are known.

Photos with captions are few, captions without photos many. A ridge regression from words to region
features, fitted on photos, gives the mean of the features of any set of captions; the leave-one-out
residual of a random photo added to it restores the variation that captions do not describe. A
captioner pretrained on such pairs learns language and the link from features to words together.

A dataset folder of photos and imagined images holds `photos.json` and `text.json`, the images of
each source with their captions, `imagined.npz`, the regression, and `bu/`, the photos' features.
Without text there is no regression: such a folder joins the photos of several.
"""

import dataclasses
import functools
import math
import os
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from sparsecap_jax.arrays import ArrayFile
from sparsecap_jax.data.features import FeatureStore, RegionFeatures, share_of
from sparsecap_jax.data.records import (
    SPLITS,
    Collector,
    ImageId,
    Record,
    Splits,
    check_path,
    checked_id,
    field,
)
from sparsecap_jax.errors import ConfigError, DataError
from sparsecap_jax.files import absent, read_json, write_atomically
from sparsecap_jax.text import unicode_words

PHOTOS, TEXT, IMAGINED = "photos.json", "text.json", "imagined.npz"
_FORMAT = 1
PENALTIES = (30.0, 100.0, 300.0, 1000.0, 3000.0)


@dataclasses.dataclass(frozen=True)
class Imagination:
    """A fitted regression from captions to region features.

    Attributes:
        words: the vocabulary, each word with its weight in a bag of words.
        slopes: `[V, R, D]`, the contribution of each word.
        mean: `[R, D]`.
        residuals: `[N, R, D]`, leave-one-out residuals of the photos.
        boxes: `[R, 4]`.
    """

    words: Mapping[str, float]
    slopes: Float[np.ndarray, "V R D"]
    mean: Float[np.ndarray, "R D"]
    residuals: Float[np.ndarray, "N R D"]
    boxes: Float[np.ndarray, "R 4"]

    @functools.cached_property
    def _rows(self) -> dict[str, int]:
        return {word: row for row, word in enumerate(self.words)}

    def imagine(self, captions: Sequence[str], residual: int) -> RegionFeatures:
        """Return features of an image with one or more captions.

        `residual` is the number, modulo the photos', of the photo whose residual is added.
        """
        features = self.mean + self.residuals[residual % len(self.residuals)].astype(np.float32)
        for word, weight in _bag(captions, self.words).items():
            features += weight * self.slopes[self._rows[word]]
        # The extractor's features are averages of a ReLU.
        features = np.maximum(features, 0)
        return RegionFeatures(features, self.boxes, features.mean(axis=0))


def fit(
    features: Float[np.ndarray, "N R D"],
    boxes: Float[np.ndarray, "R 4"],
    captions: Sequence[Sequence[str]],
    groups: Sequence[int],
    *,
    min_photos: int = 4,
    penalties: Sequence[float] = PENALTIES,
) -> tuple[Imagination, dict[str, Any]]:
    """Fit the regression with the penalty of least leave-one-out error.

    Args:
        features: of photos that all have the same windows.
        boxes: the windows.
        captions: of each photo.
        groups: number of the collection that each photo is from; each collection is centred by
            itself, and imagined images have the mean of collection 0.
        min_photos: photos whose captions must hold a word that counts.
        penalties: ridge penalties to try.

    Returns:
        The regression, and figures to report: photos, words, penalty, and `explained`, the share
        of the variance that it explains, leave-one-out.
    """
    words = _weights(captions, min_photos)
    targets = features.reshape(len(features), -1).astype(np.float64)
    means, targets = _centred(targets, np.asarray(groups))
    weights = [_bag(texts, words) for texts in captions]
    bags = np.array([[bag.get(word, 0.0) for word in words] for bag in weights])
    _, bags = _centred(bags, np.asarray(groups))
    left, sizes, right = np.linalg.svd(bags, full_matrices=False)
    projected = left.T @ targets

    def residuals(penalty: float, columns: slice) -> np.ndarray:
        """Residuals of each row under the regression fitted on all other rows."""
        shares = left * (sizes**2 / (sizes**2 + penalty))
        fitted = shares @ projected[:, columns]
        alone = 1 - np.einsum("nv,nv->n", shares, left)
        return (targets[:, columns] - fitted) / alone[:, None]

    some = slice(None, None, 1 + targets.shape[1] // 2048)  # suffices to compare penalties
    penalty = min(penalties, key=lambda p: np.square(residuals(p, some)).sum())
    apart = residuals(penalty, slice(None))
    slopes = (right.T * (sizes / (sizes**2 + penalty))) @ projected
    shape = features.shape[1:]
    fitted = Imagination(
        words,
        slopes.reshape(-1, *shape).astype(np.float32),
        means[0].reshape(shape).astype(np.float32),
        apart.reshape(-1, *shape).astype(np.float16),
        np.asarray(boxes, np.float32),
    )
    explained = 1 - np.square(apart).sum() / np.square(targets).sum()
    figures = {"photos": len(features), "words": len(words), "penalty": penalty}
    return fitted, {**figures, "explained": explained}


def _centred(rows: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of each group, and the rows less the mean of their group."""
    means = np.stack([rows[groups == group].mean(axis=0) for group in range(groups.max() + 1)])
    return means, rows - means[groups]


def _weights(captions: Sequence[Sequence[str]], min_photos: int) -> dict[str, float]:
    """Return the words of at least `min_photos` photos' captions, weighted by their rarity."""
    counts = Counter(word for texts in captions for word in _words_of(" ".join(texts)))
    kept = sorted(word for word, count in counts.items() if count >= min_photos)
    if not kept:
        raise DataError("imagined features: no word occurs in enough photos' captions")
    return {word: float(np.log(len(captions) / counts[word]) + 0.1) for word in kept}


def _bag(captions: Sequence[str], words: Mapping[str, float]) -> dict[str, float]:
    """Return the weight of each known word: root of its share of the captions, times rarity."""
    counts = Counter(word for text in captions for word in _words_of(text) if word in words)
    return {w: words[w] * math.sqrt(n / len(captions)) for w, n in counts.items()}


def _words_of(text: str) -> set[str]:
    return {*unicode_words(re.sub(r"['\u2019\d]", " ", text))}


class ImaginedStore:
    """Features of `photos`, imagined ones of images with `captions`; a `FeatureStore`."""

    def __init__(
        self,
        photos: FeatureStore,
        imagination: Imagination,
        captions: Mapping[ImageId, Sequence[str]],
    ):
        self.feature_size = photos.feature_size
        self._photos: Any = photos  # it may also offer `in`
        self._imagination, self._captions = imagination, captions
        self._numbers = {image_id: number for number, image_id in enumerate(captions)}

    def __getitem__(self, image_id: ImageId) -> RegionFeatures:
        """Return features of a photo, or imagined ones, always the same for an id."""
        if image_id not in self._captions:
            return self._photos[image_id]
        # A multiplicative hash spreads neighbours over all residuals.
        residual = self._numbers[image_id] * 2654435761 % 2**32
        return self._imagination.imagine(self._captions[image_id], residual)

    def __contains__(self, image_id: object) -> bool:
        """Return whether an image has real or imagined features."""
        return image_id in self._captions or image_id in self._photos

    def num_regions(self, image_id: ImageId) -> int:
        """Return the number of regions of one image."""
        if image_id not in self._captions:
            return self._photos.num_regions(image_id)
        return len(self._imagination.boxes)

    def check(self, image_ids: Iterable[ImageId]) -> None:
        """Raise one DataError that lists all photos without features."""
        self._photos.check([i for i in image_ids if i not in self._captions])

    def share(self, count: int) -> "ImaginedStore":
        """Return an equal store for one of `count` processes."""
        return ImaginedStore(share_of(self._photos, count), self._imagination, self._captions)


def load_imagined(
    directory: pathlib.Path, mixture: str = ""
) -> tuple[Splits, Callable[[FeatureStore], FeatureStore]]:
    """Read a dataset folder that `imagined_dataset.prepare` wrote.

    `mixture` says how often an epoch sees each source, `source=times,...`; "" is each once.

    Returns:
        Records by split, and a function that adds imagined features to a store of the photos'.

    Raises:
        ConfigError: a mixture of unknown sources.
        DataError: a file is missing or broken.
    """
    if not (directory / PHOTOS).exists():
        made = "a folder that `sparsecap prepare_data imagine` wrote (docs/photos.md)"
        raise DataError(absent(directory / PHOTOS, made))
    photos, text = _read_sources(directory / PHOTOS), _read_sources(directory / TEXT)
    times = _parse_mixture(mixture, [*photos, *text])
    splits: Splits = {name: [r for s in photos.values() for r in s[name]] for name in SPLITS}
    splits["train"] = [r for name, s in photos.items() for r in s["train"] * times[name]]
    captions: dict[ImageId, tuple[str, ...]] = {}
    for name, source in text.items():
        for record in source["train"]:
            for copy in range(times[name]):
                image_id = f"{name}/{record.image_id}/{copy}"
                captions[image_id] = record.captions
                splits["train"].append(dataclasses.replace(record, image_id=image_id))
    if not text:
        return splits, lambda store: store
    imagination = load(directory / IMAGINED)
    return splits, functools.partial(ImaginedStore, imagination=imagination, captions=captions)


def _parse_mixture(mixture: str, sources: Sequence[str]) -> dict[str, int]:
    times = dict.fromkeys(sources, 0 if mixture else 1)
    for part in filter(None, mixture.split(",")):
        name, _, number = part.partition("=")
        if name not in times or not number.isdigit():
            raise ConfigError(
                f"config.data.mixture: found {part!r}; expected SOURCE=TIMES with a source of "
                f"{', '.join(sources)}"
            )
        times[name] = int(number)
    return times


def _read_sources(path: pathlib.Path) -> dict[str, Splits]:
    """Read records by source and split."""
    content = read_json(path, "what `imagine` writes")
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected an object of sources, found {content!r:.80}")
    return {
        name: Collector(path).collect(
            (
                (f"{path}: {name}.{split}[{number}]", (split, row))
                for split in SPLITS
                for number, row in enumerate(field(splits, split, list, f"{path}: {name}"))
            ),
            _record,
        )
        for name, splits in content.items()
    }


def _record(entry: tuple[str, Any], where: str) -> Record:
    split, row = entry
    match row:
        case [int() | str(), str(), [*captions], [*raw]]:
            if all(isinstance(text, str) for text in (*captions, *raw)):
                image_id = checked_id(row[0], where)
                name = check_path(row[1], where)
                return Record(image_id, split, name, tuple(captions), tuple(raw))
    expected = "an id, a file name, captions and raw captions"
    raise DataError(f"{where}: expected {expected}, found {row!r:.80}")


def save(path: str | os.PathLike, imagination: Imagination) -> None:
    """Write a regression to one `.npz`, slopes and residuals as float16."""
    words: dict[str, Any]
    words = {"words": [*imagination.words], "weights": [*imagination.words.values()]}
    arrays = {name: getattr(imagination, name) for name in ("mean", "residuals", "boxes")}
    slopes = imagination.slopes.astype(np.float16)
    with write_atomically(path, "wb") as file:
        np.savez(file, format_version=np.int32(_FORMAT), slopes=slopes, **words, **arrays)


def load(path: str | os.PathLike) -> Imagination:
    """Read what `save` wrote; DataError where it is missing, broken, or of another format."""
    with ArrayFile(path, "not a file of imagined features (.npz)") as file:
        version = file.read("format_version", "iu", 0)
        if version != _FORMAT:
            raise DataError(f"{path}: format {version}, expected {_FORMAT}")
        words, weights = file.read("words", "U", 1), file.read("weights", "f", 1)
        ranks = {"slopes": 3, "mean": 2, "residuals": 3, "boxes": 2}
        arrays = {name: file.read(name, "f", rank) for name, rank in ranks.items()}
    sizes = len(words), *arrays["mean"].shape
    shapes = [arrays["slopes"].shape, (len(weights), *arrays["residuals"].shape[1:])]
    if (
        shapes != [sizes, sizes]
        or not len(arrays["residuals"])
        or arrays["boxes"].shape != (sizes[1], 4)
    ):
        found = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
        raise DataError(f"{path}: {len(words)} words, {len(weights)} weights do not fit {found}")
    slopes = arrays.pop("slopes").astype(np.float32)
    of_words = dict(zip(words.tolist(), weights.tolist(), strict=True))
    return Imagination(of_words, slopes, **arrays)
