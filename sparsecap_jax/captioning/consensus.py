"""Consensus: of the captions of a search, score best the one most like what the model would say.

A search looks for the caption of the highest probability. This is minimum Bayes risk decoding
instead (Kumar and Byrne, NAACL 2004): captions drawn from the model stand in for the references
that are not known, and the similarity is that of CIDEr, for which Devlin et al. (arXiv:1505.04467,
section 3.2) take captions of the nearest training images.
"""

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from sparsecap_jax.array_modules.numpy_arrays import fold_in
from sparsecap_jax.captioning.engines import Engine
from sparsecap_jax.decoding.options import DecodeOptions
from sparsecap_jax.decoding.stepper import Decoded
from sparsecap_jax.text import unicode_words
from sparsecap_jax.tokenizers import Tokenizer
from sparsecap_jax.types import Regions

AT_ONCE = 20
"""Samples of an image that are drawn together; the next ones repeat the same program."""
CAPTION_WORDS = 10
LEAST_AND_MOST = -100.0, -1e-9  # of a word's log-prob; a damaged tokenizer may have any
SIGMA = 6.0  # of the penalty on lengths, CIDEr-D's


@dataclasses.dataclass(frozen=True)
class Consensus:
    """An engine that scores the captions of a search by their likeness to samples.

    Attributes:
        engine: the engine that searches and samples.
        tokenizer: turns tokens into words, and knows how rare they are.
        count: samples drawn for each image, at temperature 1 and under the constraints of the
            search on words; `prefix` holds for them too, `required` does not.
    """

    engine: Engine
    tokenizer: Tokenizer
    count: int

    def decode(self, regions: Regions, options: DecodeOptions, **images: Any) -> Decoded:
        """See `Engine`; `scores` are in [0, 1], or -inf where constraints left no caption."""
        keys, prefix = images.pop("rng"), images.get("prefix")
        found = self.engine.decode(regions, options, **images)
        drawn = _to_sample(options, min(self.count, AT_ONCE))
        rounds = [
            self.engine.decode(regions, drawn, rng=fold_in(keys, number), prefix=prefix)
            for number in range(math.ceil(self.count / AT_ONCE))
        ]
        scores = np.array(found.scores, np.float32)
        for image in range(len(scores)):
            samples = [text for part in rounds for text in self._texts(part, image)]
            kept = np.flatnonzero(np.asarray(found.lengths[image]))
            texts = self._texts(found, image)
            scores[image, kept] = likeness(
                [texts[row] for row in kept], samples[: self.count], self._weight
            )
        return found._replace(scores=scores)

    def attention(self, regions: Regions, tokens: np.ndarray, bos_id: int) -> np.ndarray:
        """See `Engine`."""
        return self.engine.attention(regions, tokens, bos_id)

    def _texts(self, decoded: Decoded, image: int) -> list[str]:
        rows = zip(decoded.tokens[image], decoded.lengths[image], strict=True)
        return [self.tokenizer.decode(tokens[:length]) for tokens, length in rows]

    @functools.cached_property
    def _weight(self) -> Callable[[str], float]:
        return functools.cache(lambda word: rarity(self.tokenizer.word_log_prob(word)))


def rarity(log_prob: float) -> float:
    """Return `-log P`, in nats, P the chance that a caption of ten words has a word.

    It stands in for CIDEr's inverse document frequency, without captions to count in.

    Args:
        log_prob: natural log of the word's share of all words.
    """
    share = math.exp(min(LEAST_AND_MOST[1], max(LEAST_AND_MOST[0], log_prob)))
    return -math.log(-math.expm1(CAPTION_WORDS * math.log1p(-share)))


def likeness(
    captions: Sequence[str], samples: Sequence[str], weight: Callable[[str], float]
) -> Float[np.ndarray, " K"]:
    """Return the mean similarity of captions to samples.

    The similarity is CIDEr-D's (Vedantam et al., arXiv:1411.5726, equation 5, without its factor of
    10) over n-grams of one and two words. An n-gram weighs as much as its words do on average.

    Args:
        captions: K texts, split by `text.unicode_words`.
        samples: texts to compare them with, at least one.
        weight: of a word, at least 0.

    Returns:
        float64 `[K]`, between 0 and 1.
    """
    words = [unicode_words(text) for text in (*captions, *samples)]
    lengths = np.array([len(one) for one in words], np.float64)
    count = len(captions)
    total = np.zeros((count, len(samples)))
    for size in (1, 2):
        vectors = _vectors(words, size, weight)
        norms = np.linalg.norm(vectors, axis=1)
        scale = np.maximum(norms[:count, None] * norms[count:], np.finfo(np.float64).tiny)
        shared = [
            (np.minimum(row, vectors[count:]) * vectors[count:]).sum(1) for row in vectors[:count]
        ]
        total += np.reshape(shared, total.shape) / scale / 2
    difference = lengths[:count, None] - lengths[count:]
    return np.mean(total * np.exp(-np.square(difference) / (2 * SIGMA**2)), axis=1)


def _vectors(
    words: Sequence[Sequence[str]], size: int, weight: Callable[[str], float]
) -> Float[np.ndarray, "N G"]:
    """Return how often each text has each n-gram of `size` words, times the n-gram's weight."""
    shifted = ([text[start:] for start in range(size)] for text in words)
    counts = [collections.Counter(zip(*texts, strict=False)) for texts in shifted]
    places = {ngram: place for place, ngram in enumerate(dict.fromkeys(itertools.chain(*counts)))}
    vectors = np.zeros((len(words), max(1, len(places))))
    for row, of_text in zip(vectors, counts, strict=True):
        for ngram, times in of_text.items():
            row[places[ngram]] = times * sum(map(weight, ngram)) / size
    return vectors


def _to_sample(options: DecodeOptions, count: int) -> DecodeOptions:
    """Return the options of random captions under the constraints of a beam search."""
    return dataclasses.replace(
        options,
        method="sample",
        num_samples=count,
        beam_size=DecodeOptions.beam_size,
        length_penalty="",
        num_groups=1,
        temperature=1.0,
    )
