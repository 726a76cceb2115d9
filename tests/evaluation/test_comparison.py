"""Intervals and tests of differences: coverage by simulation, and against scipy's."""

import numpy as np
import pytest
import scipy.stats

from sparsecap_jax.errors import DataError
from sparsecap_jax.evaluation.comparison import (
    changed_words,
    compare,
    interval,
    pool,
    resampled,
    sign_flip,
)
from sparsecap_jax.evaluation.metrics import Judged, corpus_scores, judge_captions

TRIALS = 1000
IMAGES = 100


def counts(rng, images):
    """Counts of captions of 8 to 12 words, of which 60% of the words and 30% of pairs match."""
    lengths = rng.integers(8, 13, images)
    guesses = np.maximum(lengths[:, None] - np.arange(4), 0)
    matches = rng.binomial(guesses, [0.6, 0.3, 0.2, 0.1])
    references = rng.integers(10, 15, images)
    return np.column_stack([matches, guesses, lengths, references])


def sums(rng, images=IMAGES):
    return {"Bleu": counts(rng, images), "CIDEr": rng.gamma(2.0, 0.5, (images, 1))}


def test_no_difference_is_significant_in_five_percent():
    """Two models that are exchangeable image by image: their difference is chance."""
    rng = np.random.default_rng(0)
    flips, bootstraps = dict.fromkeys(("Bleu_4", "CIDEr"), 0), dict.fromkeys(("Bleu_4", "CIDEr"), 0)
    for trial in range(TRIALS):
        pair = sums(rng), sums(rng)
        p = sign_flip(*pair, exchanges=199, seed=trial)
        one, two = (resampled(statistics, resamples=199, seed=trial) for statistics in pair)
        for metric in flips:
            flips[metric] += p[metric] <= 0.05
            low, high = interval(one[metric] - two[metric])
            bootstraps[metric] += not low <= 0 <= high
    # Binomial(1000, 0.05): 99.9% of its draws lie within 29 and 74.
    for metric, number in flips.items():
        assert 29 <= number <= 74, metric
    # Percentiles of few draws are a little too close together.
    for metric, number in bootstraps.items():
        assert 29 <= number <= 85, metric


def test_intervals_hold_the_truth_in_95_percent():
    """The percentile interval of skewed scores of 100 images falls a little short of it."""
    rng = np.random.default_rng(1)
    truth = {k: float(v) for k, v in corpus_scores(totals(sums(rng, 200_000)), 200_000).items()}
    held = dict.fromkeys(("Bleu_1", "CIDEr"), 0)
    for trial in range(TRIALS):
        drawn = resampled(sums(rng), resamples=199, seed=trial)
        for metric in held:
            low, high = interval(drawn[metric])
            held[metric] += low <= truth[metric] <= high
    for metric, number in held.items():
        assert 915 <= number <= 970, metric


def totals(statistics):
    return {kind: values.sum(axis=0) for kind, values in statistics.items()}


def test_intervals_and_p_values_are_scipys():
    rng = np.random.default_rng(2)
    one, two = {"CIDEr": rng.gamma(1.0, 1.0, (80, 1))}, {"CIDEr": rng.gamma(1.0, 1.1, (80, 1))}
    ours = interval(resampled(one, resamples=4000)["CIDEr"])
    theirs = scipy.stats.bootstrap(
        (one["CIDEr"][:, 0],), np.mean, n_resamples=4000, method="percentile", random_state=0
    ).confidence_interval
    np.testing.assert_allclose(ours, theirs, atol=0.02)
    p = sign_flip(one, two, exchanges=4000)["CIDEr"]
    pair = one["CIDEr"][:, 0], two["CIDEr"][:, 0]
    expected = scipy.stats.permutation_test(
        pair,
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        n_resamples=4000,
        vectorized=True,
        random_state=0,
    ).pvalue
    assert p == pytest.approx(expected, abs=0.03)


def test_corpus_bleu_is_resampled_from_counts():
    """The mean of images' BLEU is another number, far from that of the corpus."""
    statistics = {"Bleu": counts(np.random.default_rng(3), 100)}
    low, high = interval(resampled(statistics, resamples=500)["Bleu_4"])
    corpus = float(corpus_scores(totals(statistics), 100)["Bleu_4"])
    assert low < corpus < high and high - low < 0.2
    assert not low < float(np.mean(corpus_scores(statistics, 1)["Bleu_4"])) < high


REFERENCES = {1: ["a dog runs"], 2: ["two men"], 3: ["a red ball", "the ball"]}


def judge(*texts):
    captions = dict(zip(REFERENCES, texts, strict=True))
    return judge_captions(captions, REFERENCES, ["Bleu_1", "ROUGE_L", "CIDEr"], "none")


def test_a_comparison_by_hand():
    judged = {
        "dense/seed_0": judge("a dog runs", "two men", "a red ball"),
        "sparse": judge("a cat runs", "two men", "a ball"),
        "dense/seed_1": judge("a dog sits", "two men", "a red ball"),
    }
    models = pool(judged)
    assert [(model.name, model.seeds) for model in models] == [
        ("dense", ["dense/seed_0", "dense/seed_1"]),
        ("sparse", ["sparse"]),
    ]
    result = compare(models, resamples=300)
    dense, sparse = result["models"]["dense"], result["models"]["sparse"]
    ciders = [judged[f"dense/seed_{n}"].scores["CIDEr"] for n in (0, 1)]
    assert dense["CIDEr"]["score"] == pytest.approx(np.mean(ciders))
    assert dense["CIDEr"]["sd"] == pytest.approx(abs(ciders[0] - ciders[1]) / np.sqrt(2))
    assert "sd" not in sparse["CIDEr"]
    # Seeds are one corpus: 15 of 16 words match, as long as their references.
    assert dense["Bleu_1"]["score"] == pytest.approx(15 / 16, rel=1e-6)
    (row,) = result["differences"]
    assert (row["first"], row["second"]) == ("dense", "sparse")
    cell = row["CIDEr"]
    expected = np.mean(ciders) - judged["sparse"].scores["CIDEr"]
    assert cell["difference"] == pytest.approx(expected)
    assert (cell["wins"], cell["losses"]) == (2, 0)
    assert cell["95%"][0] <= expected <= cell["95%"][1]
    assert cell["p_sign_flip"] > 0.3  # four exchanges of two images: two of them as far apart
    same = compare(pool({"a": judged["sparse"], "b": judged["sparse"]}), resamples=50)
    cell = same["differences"][0]["CIDEr"]
    assert (cell["difference"], cell["p_sign_flip"], cell["p_bootstrap"]) == (0, 1, 1)
    words = changed_words(*models, list(REFERENCES.values()))
    assert words["gained"] == [
        {"word": "dog", "images": 1.0, "right": 1.0},
        {"word": "red", "images": 1.0, "right": 1.0},
        {"word": "sits", "images": 0.5, "right": 0.0},
    ]
    assert words["lost"] == [
        {"word": "cat", "images": 1.0, "right": 0.0},
        {"word": "runs", "images": 0.5, "right": 0.5},
    ]


@pytest.mark.parametrize(
    ("names", "recipes"),
    [
        (["a_seed1", "a_seed2", "b_seed1"], ["a", "b"]),
        (["seed_0/x", "seed_1/x"], ["x"]),
        (["up/0.95/seed_0", "up/0.95/seed_1", "up/0.9/seed_0"], ["up/0.95", "up/0.9"]),
        (["seed_0", "seed_1"], ["seed_0", "seed_1"]),
        (["seeded", "seed"], ["seeded", "seed"]),
        (["a", "a_seed_1", "_a", "reseed1", "a_seed_1b"], ["a", "_a", "reseed1", "a_seed_1b"]),
    ],
)
def test_seeds_are_known_by_their_names(names, recipes):
    one = judge("a dog", "men", "ball")
    assert [model.name for model in pool(dict.fromkeys(names, one))] == recipes


def test_metrics_that_one_model_lacks_are_left_out():
    one, two = judge("a dog runs", "two men", "a ball"), judge("a cat", "men", "a red ball")
    sums = {kind: values for kind, values in two.sums.items() if kind != "CIDEr"}
    scores = {**two.scores, "CIDEr": None}
    two = Judged(scores, two.images, sums, two.captions, two.references)
    for models in (pool({"a": one, "b": two}), pool({"b": two, "a": one})):
        (row,) = compare(models, resamples=20)["differences"]
        assert {*row} == {"first", "second", "Bleu_1", "ROUGE_L"}


def test_other_images():
    one, other = judge("a", "b", "c"), judge("a", "b", "c")
    cut = Judged(other.scores, {1: other.images[1]}, other.sums, other.captions, other.references)
    with pytest.raises(DataError, match="b: has other images than a; expected the same"):
        pool({"a": one, "b": cut})
    silent = Judged({"METEOR": None}, one.images, {}, one.captions, one.references)
    with pytest.raises(DataError, match="METEOR alone needs Java; expected another metric"):
        compare(pool({"a": silent, "b": silent}))
    with pytest.raises(DataError, match="nothing to compare a with; expected two"):
        compare(pool({"a_seed1": one, "a_seed2": one}))
