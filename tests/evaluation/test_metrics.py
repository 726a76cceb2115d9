"""Caption scores: by hand, against the reference's figures, and where Java is missing or fails."""

import json

import numpy as np
import pytest

from sparsecap_jax.errors import ConfigError, DataError, SparsecapError
from sparsecap_jax.evaluation import java_scores, judging, ptb_java
from sparsecap_jax.evaluation.metrics import FAST_METRICS, METRICS, score_captions

needs_java = pytest.mark.skipif(not ptb_java.java_available(), reason="no java on the path")


@pytest.fixture
def no_java(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))


def test_scores_by_hand():
    candidates = {1: "A red cube near two balls.", 2: "Blue sea"}
    references = {1: ["a red cube near two balls"], 2: ["many dogs, cats", "one cow and a pig"]}
    scores = score_captions(candidates, references, FAST_METRICS, "python", per_image=True)
    # Image 1 matches all its n-grams, image 2 none of them: precisions 6/8, 5/6, 4/4, 3/3, where
    # image 2 has no 3-grams. Lengths 6 + 2 against the closest, 6 + 3: brevity penalty e^(1-9/8).
    penalty = np.exp(1 - 9 / 8)
    precisions = np.array([6 / 8, 5 / 6, 1, 1])
    for n in range(1, 5):
        expected = penalty * np.prod(precisions[:n]) ** (1 / n)
        assert scores[f"Bleu_{n}"] == pytest.approx(expected, rel=1e-6)
    # An n-gram of one image of two weighs log 2; a perfect match gives 10 for each length of
    # n-grams, the mean over lengths is 10, and the other image has 0.
    assert scores["CIDEr"] == pytest.approx(5.0, rel=1e-12)
    assert scores["ROUGE_L"] == 0.5
    assert list(scores) == [*FAST_METRICS, "per_image"]
    assert scores["per_image"][1]["CIDEr"] == pytest.approx(10.0, rel=1e-12)
    assert scores["per_image"][2] == {**scores["per_image"][2], "CIDEr": 0.0, "ROUGE_L": 0.0}
    assert list(scores["per_image"][1]) == list(FAST_METRICS)


def test_rouge_by_hand():
    # Longest common subsequence "a c": recall 2/4, precision 2/3, F with beta 1.2.
    precision, recall, beta = 2 / 3, 2 / 4, 1.2
    expected = (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
    scores = score_captions({5: "a b c"}, {5: ["a c d e"]}, ["ROUGE_L"], "none")
    assert scores == {"ROUGE_L": pytest.approx(expected, rel=1e-12)}


def test_order_of_images_does_not_matter():
    candidates = {1: "a red cube", 2: "two dogs run", 3: "a cat"}
    references = {3: ["a cat sits"], 1: ["a red cube", "one cube"], 2: ["dogs"]}
    one = score_captions(candidates, references, FAST_METRICS, "python", per_image=True)
    backwards = dict(reversed(candidates.items()))
    two = score_captions(backwards, references, FAST_METRICS, "python", per_image=True)
    assert one.pop("per_image") == two.pop("per_image")
    assert one == pytest.approx(two, rel=1e-12)


def test_reference_figures(shared):
    golden = json.loads((shared / "reference/scst/scorers.json").read_text("utf-8"))
    expected = golden["coco_eval"]
    references = dict(enumerate(golden["refs"]))
    candidates = {i: caption for i, (caption,) in enumerate(golden["baseline"])}
    assert len(candidates) == 29 and "" in candidates.values()
    scores = score_captions(candidates, references, FAST_METRICS, "none", per_image=True)
    rows = scores.pop("per_image")
    for n in range(4):
        assert scores[f"Bleu_{n + 1}"] == pytest.approx(expected["bleu"][n], abs=1e-12)
        each = [row[f"Bleu_{n + 1}"] for row in rows.values()]
        np.testing.assert_allclose(each, expected["bleu_each"][n], atol=1e-12)
    for name, key in (("ROUGE_L", "rouge_l"), ("CIDEr", "cider")):
        assert scores[name] == pytest.approx(expected[key], abs=1e-12)
        each = [row[name] for row in rows.values()]
        np.testing.assert_allclose(each, expected[f"{key}_each"], atol=1e-12)


@needs_java
def test_meteor(capfd):
    candidates = {1: "a red cube", 2: "", 3: "A dog runs"}
    references = {1: ["a red cube", "x"], 2: ["a b", ""], 3: ["One blue sea."]}
    scores = score_captions(candidates, references, per_image=True)
    rows = scores["per_image"]
    assert list(scores) == [*METRICS, "per_image"]
    assert rows[1]["METEOR"] == pytest.approx(1.0)
    assert rows[2]["METEOR"] == rows[3]["METEOR"] == 0.0
    assert 0 < scores["METEOR"] < 1
    assert capfd.readouterr() == ("", "")


@needs_java
def test_tokenizers_agree():
    candidates = {1: "A dog isn't red.", 2: "It's (a) cat"}
    references = {1: ["The dog isn't red", 'A "red" dog?'], 2: ["This isn't a cat."]}
    java = score_captions(candidates, references, FAST_METRICS, "java")
    assert java == score_captions(candidates, references, FAST_METRICS, "python")
    assert java == score_captions(candidates, references, FAST_METRICS)
    assert java != score_captions(candidates, references, FAST_METRICS, "none")


def test_without_java_meteor_is_missing_visibly(no_java, caplog):
    candidates, references = {1: "a cat", 2: "dogs"}, {1: ["a cat."], 2: ["two dogs"]}
    scores = score_captions(candidates, references, per_image=True)
    assert scores["METEOR"] is None
    assert [row["METEOR"] for row in scores["per_image"].values()] == [None, None]
    assert "METEOR is left out: it is a Java program" in caplog.text
    assert scores["Bleu_1"] > 0.5
    with pytest.raises(ConfigError, match="no java program on the path; 'python' gives the same"):
        score_captions(candidates, references, tokenizer="java")


def test_references_are_tokenized_once_for_equal_content():
    kept = judging.tokenize_kept
    kept.cache_clear()
    for caption in ("a cat", "two dogs"):
        score_captions({1: caption}, {1: ["A cat."]}, ["Bleu_1"])
    assert (kept.cache_info().misses, kept.cache_info().hits) == (1, 1)
    other = score_captions({1: "a cat"}, {1: ["A dog."]}, ["Bleu_1"])
    assert kept.cache_info().misses == 2 and other["Bleu_1"] == pytest.approx(0.5)


@needs_java
def test_failing_meteor_is_one_error(monkeypatch):
    monkeypatch.setattr(java_scores, "METEOR_JAR", "absent.jar")
    monkeypatch.setattr(java_scores, "paraphrase_rows", lambda *_: [])
    with pytest.raises(SparsecapError, match=r"METEOR failed: .*absent\.jar"):
        score_captions({1: "a"}, {1: ["a"]}, ["METEOR"], "python")


@needs_java
def test_failing_java_tokenizer_is_one_error(monkeypatch):
    monkeypatch.setattr(ptb_java, "_JAR", "absent.jar")
    with pytest.raises(SparsecapError, match=r"(?s)the Java tokenizer failed: .*ClassNotFound"):
        score_captions({1: "a"}, {1: ["a"]}, ["CIDEr"], "java")


def test_nothing_is_printed(capfd):
    score_captions({1: "a cat", 2: "dogs"}, {1: ["a cat."], 2: ["two dogs"]}, FAST_METRICS)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        ({}, {}, "no captions to score"),
        ({1: "a", 2: "b"}, {1: ["a"]}, "1 image ids have a caption but no references: 2$"),
        ({1: "a"}, {1: ["a"], "x": ["b"]}, "1 image ids have references but no caption: 'x'$"),
        (dict.fromkeys(range(9), "a"), {9: ["a"]}, r"9 image ids .* 0, 1, 2, 3, 4 \.\.\.$"),
        ({1: ["a"]}, {1: ["a"]}, r"caption of image 1: found \['a'\], expected text"),
        ({1: None}, {1: ["a"]}, "caption of image 1: found None, expected text"),
        ({1: "a"}, {1: "a"}, "references of image 1: found 'a', expected some captions"),
        ({1: "a"}, {1: []}, r"references of image 1: found \[\], expected some captions"),
        ({1: "a"}, {1: ["a", 2]}, "reference of image 1: found 2, expected text"),
        ({1: "a"}, {1: ["a", "\ud800"]}, "reference of image 1: not valid Unicode text"),
        ({1: "a"}, {1: [".", ""]}, "the references hold no words"),
    ],
)
def test_bad_captions(candidates, references, message):
    with pytest.raises(DataError, match=message):
        score_captions(candidates, references, FAST_METRICS, "python")


def test_bad_options():
    with pytest.raises(ConfigError, match="metric: found 'BLEU', expected one of Bleu_1"):
        score_captions({1: "a"}, {1: ["a"]}, ["BLEU"])
    with pytest.raises(ConfigError, match="tokenizer: found 'stanford', expected one of auto"):
        score_captions({1: "a"}, {1: ["a"]}, tokenizer="stanford")
