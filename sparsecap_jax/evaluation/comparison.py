"""Differences between captions of the same images: how large, how sure, and in which words.

Intervals are percentiles of scores of images drawn with replacement, the same draws for all; BLEU
and METEOR are computed anew from the counts of each draw. The sign-flip test exchanges the captions
of two models image by image: the share of exchanges that part the scores at least as far. All of it
is products of a matrix of draws with the counts of images; scipy's `bootstrap` and
`permutation_test` give the same figures from one metric at a time, some ten times slower.
"""

import collections
import dataclasses
import itertools
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from sparsecap_jax.errors import DataError
from sparsecap_jax.evaluation.judging import Judged, Sums, corpus_scores

_CHUNK = 500  # draws at once
_SEED_IN_NAME = re.compile(r"(^|[/_.-]+)seed[_=-]?\d+(?=[/_.-]|$)")
_WORDS = 8

_EQUAL = 1e-9


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """Scores of one recipe, its seeds pooled: all their captions are one corpus.

    Attributes:
        name: of the recipe.
        seeds: names of what was pooled.
        sums: `[N, K]` of each kind of score, the mean over seeds; images in the order of all.
        images: scores of each image by metric, `[N]`, the mean over seeds.
        scores: of the corpus.
        spread: standard deviation of the scores of seeds; empty with one seed.
        words: for each image in how many seeds each word is, as a share.
    """

    name: str
    seeds: list[str]
    sums: Sums
    images: dict[str, Float[np.ndarray, " N"]]
    scores: dict[str, float]
    spread: dict[str, float]
    words: list[dict[str, float]]


def pool(judged: Mapping[str, Judged]) -> list[Model]:
    """Pool seeds of one recipe, whose names differ in `seed_N` alone, in order of appearance.

    A name without a seed is one of its seeds, too.

    Raises:
        DataError: the images differ.
    """
    recipes: dict[str, list[str]] = {}
    for name in judged:
        recipes.setdefault(_recipe(name), []).append(name)
    order = list(next(iter(judged.values())).images)
    for name, one in judged.items():
        if {*order} != {*one.images}:
            raise DataError(
                f"{name}: has other images than {next(iter(judged))}; expected the same"
            )
    return [
        _pooled(name, seeds, [judged[seed] for seed in seeds], order)
        for name, seeds in recipes.items()
    ]


def _recipe(name: str) -> str:
    """Return a name without its seed."""
    recipe = _SEED_IN_NAME.sub("", name)
    return name if recipe == name else recipe.lstrip("/_.-") or name


def _pooled(name: str, seeds: list[str], judged: list[Judged], order: list[Hashable]) -> Model:
    rows = []
    for one in judged:
        at = {image: row for row, image in enumerate(one.images)}
        rows.append([at[image] for image in order])
    kinds = [kind for kind in judged[0].sums if all(kind in one.sums for one in judged)]
    sums = {
        kind: np.mean([one.sums[kind][row] for one, row in zip(judged, rows, strict=True)], axis=0)
        for kind in kinds
    }
    totals = corpus_scores({kind: values.sum(axis=0) for kind, values in sums.items()}, len(order))
    metrics = {name: float(totals[name]) for name in judged[0].scores if name in totals}
    scores: list[Any] = [one.scores for one in judged]  # none of these metrics is None
    of_images: list[Any] = [one.images for one in judged]
    images = {
        metric: np.mean([[one[i][metric] for i in order] for one in of_images], axis=0)
        for metric in metrics
    }
    spread = {}
    if len(judged) > 1:
        spread = {m: float(np.std([one[m] for one in scores], ddof=1)) for m in metrics}
    words = []
    for image in order:
        counts = collections.Counter(w for one in judged for w in {*one.captions[image].split()})
        words.append({word: count / len(judged) for word, count in counts.items()})
    return Model(name, seeds, sums, images, metrics, spread, words)


def draws(images: int, resamples: int, seed: int) -> Iterator[Float[np.ndarray, "B N"]]:
    """Yield how often each image is drawn, `resamples` rows in chunks."""
    rng = np.random.default_rng(seed)
    for first in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - first)
        at = rng.integers(images, size=(size, images)) + np.arange(size)[:, None] * images
        counts = np.bincount(at.reshape(-1), minlength=size * images)
        yield counts.reshape(size, images).astype(np.float64)


def resampled(
    sums: Sums, *, resamples: int = 10_000, seed: int = 0
) -> dict[str, Float[np.ndarray, " B"]]:
    """Return scores of images that are drawn with replacement; equal seeds draw equal images."""
    images = len(next(iter(sums.values())))
    parts = [
        corpus_scores({kind: weights @ values for kind, values in sums.items()}, images)
        for weights in draws(images, resamples, seed)
    ]
    return {metric: np.concatenate([part[metric] for part in parts]) for metric in parts[0]}


def interval(values: Float[np.ndarray, " B"], level: float = 0.95) -> list[float]:
    """Return the percentiles between which the share `level` of the values lies."""
    return np.quantile(values, [(1 - level) / 2, (1 + level) / 2]).tolist()


def sign_flip(
    first: Sums, second: Sums, *, exchanges: int = 10_000, seed: int = 0
) -> dict[str, float]:
    """Return for each metric the p-value of the hypothesis that two models are exchangeable.

    Args:
        first: statistics of the images, see `Judged.sums`.
        second: those of the other model, same images in the same order.
        exchanges: random exchanges.
        seed: of the exchanges.
    """
    images = len(next(iter(first.values())))
    rng = np.random.default_rng(seed)
    kinds = [kind for kind in first if kind in second]
    middles = {kind: (first[kind] + second[kind]).sum(axis=0) / 2 for kind in kinds}
    halves = {kind: (first[kind] - second[kind]) / 2 for kind in kinds}
    at_least: collections.Counter = collections.Counter()
    seen = _difference(middles, {kind: half.sum(axis=0) for kind, half in halves.items()}, images)
    for at in range(0, exchanges, _CHUNK):
        size = min(_CHUNK, exchanges - at)
        signs = rng.integers(0, 2, size=(size, images), dtype=np.int8) * 2.0 - 1
        shifts = {kind: signs @ half for kind, half in halves.items()}
        for metric, values in _difference(middles, shifts, images).items():
            # Equal up to rounding counts as equal: discrete scores have many ties.
            at_least[metric] += int(np.sum(np.abs(values) >= abs(seen[metric]) - 1e-12))
    return {metric: (1 + at_least[metric]) / (1 + exchanges) for metric in seen}


def _difference(middles: dict, shifts: dict, images: int) -> dict[str, Any]:
    one = corpus_scores({kind: middles[kind] + shift for kind, shift in shifts.items()}, images)
    two = corpus_scores({kind: middles[kind] - shift for kind, shift in shifts.items()}, images)
    return {metric: one[metric] - two[metric] for metric in one}


def compare(models: Sequence[Model], *, resamples: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """Return scores with 95% intervals, and all differences between two models.

    Args:
        models: two or more, see `pool`.
        resamples: draws of images, and exchanges of the sign-flip test.
        seed: of both.

    Returns:
        `models`: for each name its `seeds` and for each metric `score`, `95%` and, of several
        seeds, `sd`. `differences`: for each pair (the first minus the second) and metric
        `difference`, `95%`, `p_bootstrap` (twice the smaller share of draws on one side of 0),
        `p_sign_flip`, and the images that each of them wins; also words `gained` and `lost` in the
        first one's captions, each with the number of images, and how many of their references
        have it.

    Raises:
        DataError: fewer than two models, or no metric that all of them have.
    """
    if len(models) < 2:
        names = ", ".join(model.name for model in models)
        raise DataError(f"nothing to compare {names} with; expected two recipes or more")
    metrics = [name for name in models[0].scores if all(name in model.scores for model in models)]
    if not metrics:
        raise DataError("nothing to compare by: METEOR alone needs Java; expected another metric")
    drawn = [resampled(model.sums, resamples=resamples, seed=seed) for model in models]
    result: dict[str, Any] = {"images": len(models[0].words), "models": {}, "differences": []}
    for model, values in zip(models, drawn, strict=True):
        rows = {m: {"score": model.scores[m], "95%": interval(values[m])} for m in metrics}
        for metric, spread in model.spread.items():
            rows.get(metric, {})["sd"] = spread
        result["models"][model.name] = {"seeds": model.seeds, **rows}
    for (one, values), (two, others) in itertools.combinations(zip(models, drawn, strict=True), 2):
        flips = sign_flip(one.sums, two.sums, exchanges=resamples, seed=seed)
        row: dict[str, Any] = {"first": one.name, "second": two.name}
        for metric in metrics:
            shift = values[metric] - others[metric]
            # Scores of equal captions differ by rounding alone, which is no difference.
            sides = min(np.mean(shift <= _EQUAL), np.mean(shift >= -_EQUAL))
            apart = one.images[metric] - two.images[metric]
            row[metric] = {
                "difference": one.scores[metric] - two.scores[metric],
                "95%": interval(shift),
                "p_bootstrap": min(1.0, max(2 * float(sides), 1 / resamples)),
                "p_sign_flip": flips[metric],
                "wins": int(np.sum(apart > _EQUAL)),
                "losses": int(np.sum(apart < -_EQUAL)),
            }
        result["differences"].append(row)
    return result


def changed_words(
    one: Model, two: Model, references: Sequence[Sequence[str]], most: int = _WORDS
) -> dict[str, list[dict[str, Any]]]:
    """Return the words that captions of `one` gained and lost most with respect to `two`.

    Returns:
        `gained` and `lost`: for each word the number of `images` more or fewer that have it, a
        mean over seeds, and for how many of these it is `right`: a reference has the word.
    """
    known = [{word for text in texts for word in text.split()} for texts in references]
    changes: dict[str, Any] = collections.Counter()
    right: dict[str, Any] = collections.Counter()
    for first, second, words in zip(one.words, two.words, known, strict=True):
        for word in first.keys() | second.keys():
            change = first.get(word, 0) - second.get(word, 0)
            changes[word] += change
            right[word] += change if word in words else 0
    ordered = sorted(changes, key=lambda word: (-abs(changes[word]), word))
    return {
        name: [
            {"word": word, "images": sign * changes[word], "right": sign * right[word] + 0.0}
            for word in [word for word in ordered if sign * changes[word] > 1e-9][:most]
        ]
        for name, sign in (("gained", 1), ("lost", -1))
    }
