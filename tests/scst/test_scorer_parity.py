"""The host scorers against figures of the reference's scorer."""

import json

import numpy as np
import pytest

from sparsecap_jax.errors import DataError
from sparsecap_jax.scst.document_frequency import from_ngrams
from sparsecap_jax.scst.rewards import RewardWeights, leave_one_out
from sparsecap_jax.scst.scorers import HostScorer


@pytest.fixture(scope="module")
def figures(shared):
    return json.loads((shared / "reference/scst/scorers.json").read_text())


@pytest.fixture(scope="module")
def scorer(figures):
    pairs = figures["document_frequency"]
    frequency = from_ngrams(
        {tuple(ngram): count for ngram, count in pairs}, figures["document_frequency_ref_len"]
    )
    return HostScorer(frequency, figures["refs"])


def test_each_caption(figures, scorer):
    cider_d, bleu = scorer.score_texts(figures["sample"])
    np.testing.assert_allclose(cider_d.ravel(), figures["ciderD_each"], rtol=1e-12, atol=1e-12)
    expected = np.array(figures["bleu_each"]).T
    np.testing.assert_allclose(bleu.reshape(-1, 4), expected, rtol=1e-11, atol=1e-30)


@pytest.mark.parametrize("number", range(10))
def test_rewards_and_baselines(figures, scorer, number):
    run = figures["runs"][number]
    weights = RewardWeights(run["cider_weight"], tuple(run["bleu_weight"] or (0.0,) * 4))
    rewards = weights.combine(np, *scorer.score_texts(figures["sample"]))
    np.testing.assert_allclose(rewards.ravel(), run["sc_sample"], rtol=1e-11, atol=1e-12)
    if run["baseline"] == "greedy":
        captions = figures["baseline"]
        baseline = weights.combine(np, *scorer.score_texts(captions))
        baseline = np.broadcast_to(baseline, rewards.shape)
    else:
        baseline = leave_one_out(rewards)
    np.testing.assert_allclose(baseline.ravel(), run["sc_baseline"], rtol=1e-11, atol=1e-12)


def test_malformed_captions_are_refused(scorer, figures):
    with pytest.raises(DataError, match=r"captions per image: found \[1, 2\]"):
        scorer.score_texts([["a"], ["a", "b"]])
    with pytest.raises(DataError, match="found captions of 2 images, expected 29"):
        scorer.score_texts(figures["sample"][:2])
