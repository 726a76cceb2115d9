"""Figures of captions as text: how varied, how long, how often they repeat, copy or break off."""

import collections
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sparsecap_jax.errors import DataError
from sparsecap_jax.evaluation.ngram_scores import NgramScores, bleu

_ENDINGS = """a an the this that his her its their with in on of at to for from by near next and or
is are has as"""
BAD_ENDINGS = frozenset(_ENDINGS.split())
"""Words that end no caption: articles, prepositions, conjunctions, and the like."""
_REPEATED = 4  # words of the longest phrase that counts as repeated


def describe(
    captions: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float | int]:
    """Return figures of captions, tokens separated by blanks.

    Args:
        captions: one caption of each image.
        references: those of each image.

    Returns:
        `words`: of a caption, on average; `vocabulary`: distinct words; `coverage`: share of the
        references' distinct words that are among them; `distinct_1`, `distinct_2`: distinct words
        and pairs of words over all; `distinct`: share of captions that differ; `repetition`: share
        of captions that say one to four words twice in a row; `bad_ending`: share that ends in one
        of `BAD_ENDINGS`.
    """
    words = [caption.split() for caption in captions]
    used = {word for row in words for word in row}
    of_references = {word for texts in references for text in texts for word in text.split()}
    figures = {
        "words": sum(map(len, words)) / len(words),
        "vocabulary": len(used),
        "coverage": len(used & of_references) / max(1, len(of_references)),
        "distinct_1": distinct(words, 1),
        "distinct_2": distinct(words, 2),
        "distinct": len({*captions}) / len(captions),
        "repetition": sum(map(repeats, words)) / len(words),
        "bad_ending": sum(row[-1:] != [] and row[-1] in BAD_ENDINGS for row in words) / len(words),
    }
    return figures


def copied(captions: Iterable[str], training: Iterable[str]) -> float:
    """Return the share of captions that are training captions, but for case and final periods."""

    def plain(text: str) -> str:
        return " ".join(text.lower().rstrip(" .").split())

    known = {*map(plain, training)}
    return float(np.mean([plain(caption) in known for caption in captions]))


def distinct(words: Iterable[Sequence[str]], n: int) -> float:
    """Return the share of n-grams that are distinct, 0 where there are none."""
    grams = [tuple(row[i : i + n]) for row in words for i in range(len(row) - n + 1)]
    return len({*grams}) / max(1, len(grams))


def repeats(words: Sequence[str]) -> bool:
    """Return whether one to four words stand twice in a row."""
    return any(
        words[i : i + n] == words[i + n : i + 2 * n]
        for n in range(1, _REPEATED + 1)
        for i in range(len(words) - 2 * n + 1)
    )


def describe_sets(
    sets: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Return figures of several captions of each image, tokens separated by blanks.

    Args:
        sets: as many captions for each image, two or more.
        references: those of each image; their document frequencies count for self-CIDEr.

    Returns:
        `distinct_1`, `distinct_2`: distinct words and pairs of words of an image's captions over
        all of them, the mean over images. `mBleu_1` to `mBleu_4`: BLEU of the captions at each
        place against the others of the image, the mean over places; low where captions differ.
        `self_CIDEr`: 0 where an image's captions are the same, 1 where they have nothing in
        common.

    Raises:
        DataError: numbers of captions that differ, or fewer than two.

    References:
        Shetty et al., "Speaking the Same Language: Matching Machine to Human Captions by
        Adversarial Training" (2017); Wang and Chan, "Describing like Humans: On Diversity in Image
        Captioning" (2019).
    """
    sizes = {len(texts) for texts in sets}
    if len(sizes) != 1 or min(sizes) < 2:
        expected = "the same number, two or more"
        raise DataError(f"captions per image: found {sorted(sizes)}; expected {expected}")
    words = [[text.split() for text in texts] for texts in sets]
    figures: dict[str, Any] = {
        f"distinct_{n}": np.mean([distinct(rows, n) for rows in words]) for n in (1, 2)
    }
    places = []
    for place in range(sizes.pop()):
        others = [[*texts[:place], *texts[place + 1 :]] for texts in sets]
        counts = NgramScores([texts[place] for texts in sets], others).bleu_counts()
        places.append(bleu(counts.sum(axis=0)))
    means = np.mean(places, axis=0)
    figures |= {f"mBleu_{n}": score for n, score in enumerate(means, start=1)}
    figures["self_CIDEr"] = _self_cider(words, references)
    return {name: float(value) for name, value in figures.items()}


def _grams(words: Sequence[str]) -> list[collections.Counter]:
    return [
        collections.Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
        for n in range(1, 5)
    ]


def _self_cider(sets: Sequence[Sequence[Sequence[str]]], references: Any) -> float:
    """Mean over images of -log_m(s_1 / sum s), s the roots of eigenvalues of the m captions."""
    documents: collections.Counter = collections.Counter()
    for texts in references:
        counters = itertools.chain.from_iterable(_grams(text.split()) for text in texts)
        documents.update({*itertools.chain.from_iterable(counters)})
    size, scores = math.log(len(references)), []
    for texts in sets:
        similar = np.zeros((len(texts), len(texts)))
        for counters in zip(*map(_grams, texts), strict=True):  # one order of n-grams
            columns = {gram: n for n, gram in enumerate({*itertools.chain(*counters)})}
            vectors = np.zeros((len(texts), max(1, len(columns))))
            for row, counter in zip(vectors, counters, strict=True):
                for gram, count in counter.items():
                    row[columns[gram]] = count * (size - math.log(max(1, documents[gram])))
            norms = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors /= np.where(norms > 0, norms, 1)
            similar += vectors @ vectors.T / 4
        roots = np.sqrt(np.clip(np.linalg.eigvalsh(similar), 0, None))
        share = roots[-1] / roots.sum() if roots.sum() else 1.0
        scores.append(-math.log(share) / math.log(len(texts)))
    return float(np.mean(scores))
