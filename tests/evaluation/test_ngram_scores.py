"""BLEU, ROUGE-L and CIDEr equal pycocoevalcap's to the last bit."""

import math
import tracemalloc

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from sparsecap_jax.evaluation.ngram_scores import NgramScores, bleu
from sparsecap_jax.scst.document_frequency import count_documents, from_ngrams


def toolkit(captions, references):
    pairs = dict(enumerate(references)), {n: [text] for n, text in enumerate(captions)}
    bleus = Bleu(4).compute_score(*pairs, verbose=0)
    return bleus, Rouge().compute_score(*pairs), Cider().compute_score(*pairs)


def assert_equal(captions, references):
    (totals, each), (rouge, rouges), (cider, ciders) = toolkit(captions, references)
    scores = NgramScores(captions, references)
    counts = scores.bleu_counts()
    np.testing.assert_array_equal(bleu(counts), np.transpose(each))
    np.testing.assert_array_equal(bleu(counts.sum(axis=0)), totals)
    np.testing.assert_array_equal(scores.rouge(), rouges)
    np.testing.assert_array_equal(scores.cider(), ciders)
    assert (np.mean(scores.rouge()), np.mean(scores.cider())) == (rouge, cider)


@pytest.mark.parametrize("seed", range(20))
def test_random_captions(seed):
    """Words that repeat, empty captions and references, captions longer than all references."""
    rng = np.random.default_rng(seed)
    images, words = rng.integers(1, 40), list("abcdefghijkl")[: rng.integers(1, 12)]

    def text():
        return " ".join(rng.choice(words, rng.choice([0, 1, 4, 9, 13])))

    captions = [text() for _ in range(images)]
    references = [[text() for _ in range(rng.integers(1, 6))] for _ in range(images)]
    references[0][0] = "a b"
    assert_equal(captions, references)


def test_long_and_lopsided_captions():
    captions = ["a b" + " a b" * 300, "", "c"]
    assert_equal(captions, [["b a" + " b a" * 200, "c"], ["", "d"], ["c" + " c" * 2000]])


def test_one_long_caption_takes_little_memory():
    """All others are not padded to its length at once, which would take 240 MB."""
    captions = ["a " * 15_000, *["b"] * 2000]
    tracemalloc.start()
    scores = NgramScores(captions, [["a"], *[["b", "c"]] * 2000]).rouge()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert scores[0] > 0 and (scores[1:] == 1).all() and peak < 1e8


def test_cider_with_document_frequencies_of_a_corpus():
    """One image scores by other images' counts: log(7) for "a", log(7 / 3) for "b"."""
    frequency = from_ngrams({("a",): 1.0, ("b",): 3.0}, 7)
    weights = np.array([math.log(7), math.log(7 / 3), math.log(7)])  # a, b, c
    found = NgramScores(["a b"], [["a b"]]).cider(frequency)
    np.testing.assert_allclose(found, [2 * 10 / 4], rtol=1e-12)  # no longer n-grams
    # By hand, with a word of no reference: unigrams a b against a c.
    one, two = math.hypot(*weights[[0, 1]]), math.hypot(*weights[[0, 2]])
    found = NgramScores(["a b"], [["a c"]]).cider(frequency)
    np.testing.assert_allclose(found, [weights[0] ** 2 / (one * two) * 10 / 4], rtol=1e-12)


def test_document_frequencies_of_the_references_themselves():
    references = [["a red cube", "one cube"], ["two dogs run", "dogs"], ["a cat sits"]]
    scores = NgramScores(["a red cube", "two dogs", "a cat a cat"], references)
    np.testing.assert_allclose(
        scores.cider(count_documents(references)), scores.cider(), rtol=1e-12
    )
