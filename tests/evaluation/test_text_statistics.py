"""Figures of captions as text, by hand."""

import math

import numpy as np
import pytest

from sparsecap_jax.errors import DataError
from sparsecap_jax.evaluation.text_statistics import copied, describe, describe_sets


def test_figures_of_captions():
    captions = ["a dog and a dog", "a red red ball", "a man with a", "", "a dog and a dog"]
    references = [["a dog", "two dogs"], ["a ball"], ["the man"], ["x"], ["y"]]
    figures = describe(captions, references)
    assert figures == {
        "words": 18 / 5,
        "vocabulary": 7,  # a dog and red ball man with
        "coverage": 4 / 9,  # a dog ball man, of a dog two dogs ball the man x y
        "distinct_1": 7 / 18,
        "distinct_2": 9 / 14,  # a dog, dog and, and a | a red, red red, red ball | a man, ..
        "distinct": 4 / 5,
        "repetition": 1 / 5,  # red red
        "bad_ending": 1 / 5,
    }
    twice = ["on a bed on a bed", "a b c d a b c d", "a b a c", "a b c d e a b c d e"]
    assert describe(twice, [["x"]] * 4)["repetition"] == 2 / 4
    assert describe([""], [[""]])["distinct_2"] == 0


def test_copies_of_training_captions():
    assert copied(["a dog runs", "a cat", "A dog."], ["A dog runs .", "a  dog"]) == 2 / 3


def test_figures_of_sets():
    same, apart = ["a dog runs", "a dog runs"], ["one red cat", "two big men"]
    references = [["a dog runs"], ["one cat", "men"], ["nothing"]]
    figures = describe_sets([same, apart, same], references)
    # Each set has 6 words and 4 pairs of words.
    assert figures["distinct_1"] == pytest.approx((3 / 6 + 1 + 3 / 6) / 3)
    assert figures["distinct_2"] == pytest.approx((2 / 4 + 1 + 2 / 4) / 3)
    assert figures["mBleu_1"] == pytest.approx(6 / 9, rel=1e-6)
    assert figures["mBleu_2"] == pytest.approx(math.sqrt(6 / 9 * 4 / 6), rel=1e-6)
    # Same captions have one eigenvalue, so 0; captions that share nothing have equal ones, so 1.
    # Captions of three words have no 4-grams: a quarter less, which scales all eigenvalues.
    assert figures["self_CIDEr"] == pytest.approx(1 / 3, abs=1e-6)


def test_self_cider_between_same_and_apart():
    """Two captions whose unigrams alone match in part, by the formula."""
    texts, references = ["a b", "a c"], [["a", "b", "c"], ["x"]]
    cosine = 1 / 2  # of unigrams, all of idf log 2; bigrams differ; no longer n-grams
    similar = np.array([[2, cosine], [cosine, 2]]) / 4
    roots = np.sqrt(np.linalg.eigvalsh(similar))
    expected = -math.log(roots[-1] / roots.sum(), 2)
    assert describe_sets([texts, texts], references)["self_CIDEr"] == pytest.approx(expected)


@pytest.mark.parametrize("sets", [[["a", "b"], ["a"]], [["a"], ["b"]]])
def test_sets_of_other_sizes(sets):
    with pytest.raises(DataError, match=r"captions per image: found \[1.*expected the same number"):
        describe_sets(sets, [["a"], ["b"]])
