"""BLEU, ROUGE-L and CIDEr in arrays of integers, equal to pycocoevalcap's to the last bit.

Counts are integers. Sums of floating-point numbers run in the toolkit's order: n-grams as a caption
has them first, references as they come (`np.bincount` adds in the order of its input). Logarithms
and powers are those of single numbers, because those of arrays may differ in the last bit.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int, Num

from sparsecap_jax.scst.document_frequency import MAX_N, DocumentFrequency

_TINY, _SMALL = 1e-15, 1e-9  # BLEU: added to numerators and denominators
_BETA, _SIGMA = 1.2, 6.0  # ROUGE-L: weight of recall; CIDEr: of the penalty of lengths
_CHUNK = 2**21  # words of the pairs whose longest common subsequences are searched at once
_FAR = 1 << 32


@dataclasses.dataclass(frozen=True, eq=False)
class _Grams:
    """N-grams of one order, one row for each that a sentence has, as the sentence has them first.

    Attributes:
        sentence: number of the sentence; candidates come first, then references.
        gram: number of the n-gram.
        count: how often the sentence has it.
        start: place of its first word.
        keys: `sentence * size + gram` of all rows, sorted; `order` are their rows.
        size: number of n-grams.
    """

    sentence: np.ndarray
    gram: np.ndarray
    count: np.ndarray
    start: np.ndarray
    keys: np.ndarray
    order: np.ndarray
    size: int

    def rows(self, sentences: np.ndarray, grams: np.ndarray) -> np.ndarray:
        """Return rows of n-grams in sentences, -1 where a sentence has it not."""
        keys = sentences * self.size + grams
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, self.order[at], -1) if len(self.keys) else at


class NgramScores:
    """Scores of one caption per image, words separated by single blanks.

    Args:
        captions: the captions of N images.
        references: at least one for each image.
    """

    def __init__(self, captions: Sequence[str], references: Sequence[Sequence[str]]):
        texts = [*captions, *(text for texts in references for text in texts)]
        words = [text.split() for text in texts]
        numbers: dict[str, int] = {}
        self.images, self._texts = len(captions), texts
        self._lengths = np.array([len(row) for row in words])
        flat = [numbers.setdefault(word, len(numbers)) for row in words for word in row]
        self._words, self._vocabulary = np.array(flat, np.int64), list(numbers)
        self._first = np.concatenate([[0], np.cumsum(self._lengths)])
        self._references = np.array([len(texts) for texts in references])
        # First reference of each image, and the image of each sentence.
        self._begin = self.images + np.concatenate([[0], np.cumsum(self._references)[:-1]])
        of_references = np.repeat(np.arange(self.images), self._references)
        self._image = np.concatenate([np.arange(self.images), of_references])
        self._orders = list(self._count())

    def _count(self):
        """Yield the n-grams of each order."""
        sentence = np.repeat(np.arange(len(self._lengths)), self._lengths)
        left = self._first[sentence + 1] - np.arange(len(sentence))
        starts, nodes, size = np.arange(len(sentence)), self._words, len(self._vocabulary)
        for n in range(1, MAX_N + 1):
            starts, nodes = starts[left[starts] >= n], nodes[left[starts] >= n]
            if n > 1:
                nodes = nodes * len(self._vocabulary) + self._words[starts + n - 1]
                distinct, nodes = np.unique(nodes, return_inverse=True)
                size = len(distinct)
            keys, first, counts = np.unique(
                sentence[starts] * size + nodes, return_index=True, return_counts=True
            )
            appearance = np.argsort(first)
            order = np.argsort(appearance)
            first, counts = first[appearance], counts[appearance]
            row = sentence[starts][first], nodes[first], counts, starts[first]
            yield _Grams(*row, keys, order, size)

    def _pairs(self, grams: _Grams):
        """Pair the rows of captions with each reference of the image.

        Returns:
            For each pair the caption's row, the reference, and its row of the n-gram or -1; and the
            first pair of each row.
        """
        rows = np.flatnonzero(grams.sentence < self.images)
        numbers = self._references[grams.sentence[rows]]
        first = np.concatenate([[0], np.cumsum(numbers)])
        of_row = np.repeat(rows, numbers)
        place = np.arange(first[-1]) - np.repeat(first[:-1], numbers)
        reference = self._begin[grams.sentence[of_row]] + place
        return of_row, reference, grams.rows(reference, grams.gram[of_row]), first[:-1]

    def bleu_counts(self) -> Int[np.ndarray, "N 10"]:
        """Return what BLEU sums over images: matches and n-grams of each order, both lengths.

        The reference's length is the one that is closest to the caption's, the shorter one of two.
        """
        lengths = self._lengths[: self.images]
        matches = np.zeros((MAX_N, self.images), np.int64)
        for n, grams in enumerate(self._orders):
            of_row, _, found, first = self._pairs(grams)
            if len(first):
                most = np.maximum.reduceat(np.where(found >= 0, grams.count[found], 0), first)
                rows = of_row[first]
                hits = np.minimum(most, grams.count[rows])
                np.add.at(matches[n], grams.sentence[rows], hits)
        others = self._lengths[self.images :]
        distance = np.abs(others - lengths[self._image[self.images :]])
        closest = np.minimum.reduceat(distance * _FAR + others, self._begin - self.images) % _FAR
        guesses = [np.maximum(lengths - n, 0) for n in range(MAX_N)]
        return np.stack([*matches, *guesses, lengths, closest], axis=1)

    def rouge(self) -> Float[np.ndarray, " N"]:
        """Return ROUGE-L of each image, from the best recall and the best precision."""
        lengths = np.maximum(self._lengths, 1)  # to the toolkit, an empty text is one empty word
        references = np.arange(self.images, len(lengths))
        references = references[np.argsort(lengths[references], kind="stable")]
        common = np.zeros(len(lengths), np.int64)
        step = max(1, min(1024, _CHUNK // int(lengths.max())))
        for at in range(0, len(references), step):
            chunk = references[at : at + step]
            common[chunk] = _common(self._padded(self._image[chunk], -1), self._padded(chunk, -2))
        common, of = common[self.images :], self._image[self.images :]
        begin = self._begin - self.images
        precision = np.maximum.reduceat(common / lengths[of], begin)
        recall = np.maximum.reduceat(common / lengths[self.images :], begin)
        scale = recall + _BETA**2 * precision
        scores = (1 + _BETA**2) * precision * recall / np.where(scale > 0, scale, 1)
        return np.where((precision != 0) & (recall != 0), scores, 0.0)

    def _padded(self, sentences: np.ndarray, fill: int) -> np.ndarray:
        """Return words of sentences `[longest, S]`; an empty sentence has one word of its own."""
        lengths = self._lengths[sentences]
        places = np.arange(max(1, lengths.max()))[:, None]
        inside = places < lengths
        at = np.where(inside, self._first[sentences] + places, 0)
        words = np.where(inside, self._words[at], fill) if len(self._words) else at * 0 + fill
        words[0, lengths == 0] = len(self._vocabulary)
        return words

    def cider(self, frequency: DocumentFrequency | None = None) -> Float[np.ndarray, " N"]:
        """Return CIDEr of each image, 0 to 10; toolkit's form with clipped counts and a penalty.

        Args:
            frequency: document frequencies of a corpus; None: of the references.
        """
        similar = np.zeros((self.images, MAX_N))
        bigrams = np.maximum(self._lengths - 1, 0)
        difference = bigrams[self._image] - bigrams
        penalty = _each(lambda d: np.e ** (-(float(d) ** 2) / (2 * _SIGMA**2)), difference)
        known = None if frequency is None else self._known(frequency)
        size = math.log(self.images) if frequency is None else math.log(frequency.num_images)
        for n, grams in enumerate(self._orders):
            if known is None:
                inside = grams.sentence >= self.images
                seen = self._image[grams.sentence[inside]] * grams.size + grams.gram[inside]
                documents = np.bincount(np.unique(seen) % grams.size, minlength=grams.size)
                documents = documents[grams.gram]
            else:
                documents = known[grams.start, n]
            idf = _each(lambda count: size - np.log(max(1.0, float(count))), documents)
            weights = grams.count * idf
            squares = _each(lambda weight: pow(weight, 2), weights)
            norms = np.sqrt(np.bincount(grams.sentence, squares, len(self._lengths)))
            of_row, reference, found, _ = self._pairs(grams)
            others = np.where(found >= 0, weights[found], 0.0) if len(found) else found
            terms = np.minimum(weights[of_row], others) * others
            values = np.bincount(reference, terms, len(self._lengths))
            scale = norms[self._image] * norms
            values = np.where(scale != 0, values / np.where(scale != 0, scale, 1), values) * penalty
            similar[:, n] = np.bincount(
                self._image[self.images :], values[self.images :], self.images
            )
        means = np.array([np.mean(row) for row in similar])
        return means / self._references * 10.0

    def _known(self, frequency: DocumentFrequency) -> np.ndarray:
        """Return the document frequencies of the n-grams at each place `[places, 4]`."""
        index = {word: number for number, word in enumerate(frequency.words)}
        numbers = np.array([index.get(word, -1) for word in self._vocabulary], np.int64)
        documents = np.zeros((len(self._words), MAX_N))
        for length in np.unique(self._lengths[self._lengths > 0]):
            places = self._first[:-1][self._lengths == length][:, None] + np.arange(length)
            documents[places] = frequency.look_up(numbers[self._words[places]])
        return documents


def bleu(counts: Num[np.ndarray, "*B 10"]) -> Float[np.ndarray, "*B 4"]:
    """Return BLEU-1 to 4 of counts, or of their sums over images (`NgramScores.bleu_counts`)."""
    rows = counts.reshape(-1, counts.shape[-1])
    precisions = (rows[:, :MAX_N] + _TINY) / (rows[:, MAX_N : 2 * MAX_N] + _SMALL)
    ratio = (rows[:, -2] + _TINY) / (rows[:, -1] + _SMALL)
    brevity = _each(lambda value: math.exp(1 - 1 / value) if value < 1 else 1.0, ratio)
    scores = np.cumprod(precisions, axis=1)
    for n in range(MAX_N):
        scores[:, n] = [product ** (1.0 / (n + 1)) for product in scores[:, n].tolist()]
    return (scores * brevity[:, None]).reshape(*counts.shape[:-1], MAX_N)


def _common(captions: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Return lengths of longest common subsequences of words `[A, P]` and `[B, P]`."""
    row = np.zeros((len(references) + 1, references.shape[1]), np.int32)
    for word in captions:
        longer = np.maximum(row[:-1] + (references == word), row[1:])
        np.maximum.accumulate(longer, axis=0, out=row[1:])
    return row[-1]


def _each(function: Callable[[float], float], values: np.ndarray) -> np.ndarray:
    """Apply a function of single numbers to the distinct ones among `values`."""
    distinct, inverse = np.unique(values, return_inverse=True)
    return np.array([function(value) for value in distinct], np.float64)[inverse]
