"""Consensus: likeness by hand and by a slow version, and searches that are scored by it."""

import math
import zlib

import jax
import numpy as np
import pytest
from captioner_runs import LENGTH, image_arrays, make_run

from sparsecap_jax.captioner import Captioner
from sparsecap_jax.captioning.consensus import AT_ONCE, Consensus, likeness, rarity
from sparsecap_jax.data.batches import pad_regions
from sparsecap_jax.data.features import RegionFeatures
from sparsecap_jax.decoding import DecodeOptions, decode
from sparsecap_jax.decoding.stepper import Decoded
from sparsecap_jax.tokenizers import TOKENIZERS

FEATURES, _ = image_arrays(6)


def padded(count):
    """The first images in one batch."""
    images = [RegionFeatures(one, None, one.mean(axis=0)) for one in FEATURES[:count]]
    return pad_regions(images, count, 8)


WORDS = ("a", "the", "dog", "cat", "runs", "on", "grass")


def test_likeness_by_hand():
    def alike(word):
        return 1.0

    # "a" of two words, and no bigram: (1/2 + 0) / 2. The text itself: 1.
    found = likeness(["a dog", "cat"], ["a dog", "a cat"], alike)
    one_of_two = 1 / math.sqrt(2) / 2 * math.exp(-1 / 72)  # "cat": no bigram, one word fewer
    np.testing.assert_allclose(found, [(1 + 0.25) / 2, (0 + one_of_two) / 2])
    # Two words of three, one bigram of two, one word more.
    expected = (2 / math.sqrt(6) + 1 / math.sqrt(2)) / 2 * math.exp(-1 / 72)
    np.testing.assert_allclose(likeness(["a dog runs"], ["a dog"], alike), [expected])
    # A word that is said twice counts once: min(2, 1) * 1 / (2 * 1).
    np.testing.assert_allclose(likeness(["a a"], ["a"], alike), [0.25 * math.exp(-1 / 72)])
    # Weights of words: 3 and 4 of a length of 5; the bigram weighs 3.5 and is alone.
    found = likeness(["a dog"], ["a cat", "a dog"], {"a": 3.0, "dog": 4.0, "cat": 4.0}.get)
    np.testing.assert_allclose(found, [(9 / 25 / 2 + 1) / 2])
    # Scripts without blanks: two characters of three, one bigram of two.
    expected = (2 / 3 + 1 / 2) / 2
    np.testing.assert_allclose(likeness(["一只狗"], ["一只猫"], alike), [expected])
    np.testing.assert_array_equal(likeness(["", "a"], ["", "dog"], alike), [0, 0])
    assert likeness([], ["a dog"], alike).shape == (0,)


def slow_likeness(caption, samples, weight):
    """The formula term by term, with n-grams counted by searching for each."""
    total, mine = 0.0, caption.split()
    for sample in samples:
        theirs, value = sample.split(), 0.0
        for size in (1, 2):

            def vector(words, size=size):
                found = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
                return {n: found.count(n) * sum(map(weight, n)) / size for n in found}

            a, b = vector(mine), vector(theirs)
            norm = math.sqrt(sum(v * v for v in a.values()) * sum(v * v for v in b.values()))
            if norm:
                value += sum(min(v, b.get(n, 0.0)) * b.get(n, 0.0) for n, v in a.items()) / norm / 2
        total += value * math.exp(-((len(mine) - len(theirs)) ** 2) / 72)
    return total / len(samples)


def test_likeness_equals_a_slow_version():
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(0, 9))) for _ in range(40)]
    weights = dict(zip(WORDS, rng.random(len(WORDS)), strict=True))
    expected = [slow_likeness(text, texts[10:], weights.get) for text in texts[:10]]
    np.testing.assert_allclose(likeness(texts[:10], texts[10:], weights.get), expected)
    assert len(set(expected)) > 7


def test_rarity_by_hand():
    assert rarity(math.log(0.5)) == pytest.approx(-math.log(1 - 0.5**10))
    assert rarity(math.log(1e-6)) == pytest.approx(-math.log(1e-5), rel=1e-4)
    assert rarity(0.0) == pytest.approx(0.0, abs=1e-9)  # the only word there is
    assert rarity(5.0) == rarity(0.0)
    for log_prob in (-100.0, -1e9, -math.inf, math.nan):
        assert rarity(log_prob) == pytest.approx(100 - math.log(10))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_shares_of_words(name, tmp_path):
    """Three of the six words are "a"; subwords multiply the shares in their file."""
    tokenizer = TOKENIZERS[name].train(["a dog", "a cat", "a dog"], tmp_path / "t", 40)
    shares = {word: math.exp(tokenizer.word_log_prob(word)) for word in ("a", "dog", "cat", "zz")}
    if name in ("word", "radix"):
        assert shares == pytest.approx({"a": 1 / 2, "dog": 1 / 3, "cat": 1 / 6, "zz": 1}, rel=1e-5)
    elif name == "bpe":
        assert len(set(shares.values())) == 1
    else:
        lines = (tmp_path / "t" / f"{tokenizer.model_type}.vocab").read_text("utf-8").splitlines()
        scores = dict(line.split("\t") for line in lines)
        for word in ("a", "dog", "cat"):
            pieces = [float(scores[piece.value]) for piece in tokenizer.pieces(word)]
            assert shares[word] == pytest.approx(math.exp(sum(pieces)), rel=1e-4)
        assert len(set(shares.values())) > 2


class Fixed:
    """An engine with three beams, the last cut off by constraints; counts what is drawn."""

    beams = ("the cat", "a dog", "")
    drawn = "a dog runs"

    def __init__(self, tokenizer):
        self.tokenizer, self.calls = tokenizer, []

    def decode(self, regions, options, **images):
        self.calls.append((options, images))
        texts = self.beams if options.method == "beam" else (self.drawn,) * options.num_samples
        rows = [self.tokenizer.encode(text, add_special=False) if text else [] for text in texts]
        tokens = np.zeros((1, len(rows), 3), np.int32)
        for row, ids in zip(tokens[0], rows, strict=True):
            row[: len(ids)] = ids
        lengths = np.array([[len(ids) for ids in rows]], np.int32)
        scores = np.where(lengths, np.float32(-1), np.float32(-np.inf))
        return Decoded(tokens, np.zeros(tokens.shape, np.float32), scores, lengths)

    def attention(self, regions, tokens, bos_id):
        raise AssertionError


def test_beams_get_the_likeness_to_the_samples(tmp_path):
    tokenizer = TOKENIZERS["word"].train(["a dog runs", "the cat"], tmp_path / "t", 10)
    engine = Fixed(tokenizer)
    options = DecodeOptions(beam_size=3, length_penalty="avg_0", no_repeat_ngram=2, suppress=(5,))
    images = {"rng": np.array([[0, 7]], np.uint32), "prefix": None, "required": "an automaton"}
    found = Consensus(engine, tokenizer, 2 * AT_ONCE + 1).decode(padded(1), options, **images)
    # Each word but "a" of the six has a share of 1/5.
    weight = rarity(math.log(1 / 5))
    expected = likeness(["the cat", "a dog"], [engine.drawn], lambda word: weight)
    assert expected[0] == 0 < expected[1]
    np.testing.assert_allclose(found.scores, [[*expected, -np.inf]], rtol=1e-6)
    assert engine.calls[0] == (options, {"prefix": None, "required": "an automaton"})
    kept = {"no_repeat_ngram": 2, "suppress": (5,), "num_samples": AT_ONCE}
    sampled = DecodeOptions(method="sample", **kept)
    assert [options for options, _ in engine.calls[1:]] == [sampled] * 3
    keys = [images.pop("rng").tolist() for _, images in engine.calls[1:]]
    assert len({str(key) for key in keys}) == 3
    assert [images for _, images in engine.calls[1:]] == [{"prefix": None}] * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run") / "run")


def drawn(run, count, seed):
    """Samples of each image as JAX draws them: a key for the image, and one for 20 of them."""
    options = DecodeOptions(
        method="sample",
        num_samples=AT_ONCE,
        max_length=LENGTH,
        bad_endings=run.tokenizer.encode("a", add_special=False),
    )
    ids = np.array([zlib.crc32(str(i).encode()) for i in range(len(FEATURES))], np.uint32)
    keys, texts = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), ids), []
    for part in range(-(-count // AT_ONCE)):
        rng = jax.vmap(jax.random.fold_in, (0, None))(keys, part)
        found = jax.device_get(decode(run.model, run.params, padded(len(ids)), options, rng))
        texts += [[] for _ in range(len(ids) - len(texts))]
        for of_image, *rows in zip(texts, found.tokens, found.lengths, strict=True):
            of_image += [run.tokenizer.decode(row[:size]) for row, size in zip(*rows, strict=True)]
    return [of_image[:count] for of_image in texts]


@pytest.mark.parametrize("backend", ["sparse", "xla"])
def test_a_search_by_consensus(folder, backend):
    captioner = Captioner.load(folder, backend=backend)
    beams = {"beam_size": 4, "bad_endings": ["a"]}
    plain = captioner.candidates(FEATURES, **beams)
    search = {**beams, "consensus": 30, "seed": 3}
    found = captioner.candidates(FEATURES, **search)
    assert [[c.text for c in of] for of in found] == [[c.text for c in of] for of in plain]
    weight = captioner.run.tokenizer.word_log_prob
    for image, samples in enumerate(drawn(captioner.run, 30, seed=3)):
        texts = [one.text for one in found[image]]
        expected = likeness(texts, samples, lambda word: rarity(weight(word)))
        np.testing.assert_allclose([c.score for c in found[image]], expected, rtol=1e-5)
    # Neither a batch nor its size matters, a seed does.
    alone, best = (captioner.caption(images, **search) for images in (FEATURES[0], FEATURES))
    assert (alone.text, alone.score) == (best[0].text, best[0].score)
    assert alone.score != captioner.caption(FEATURES[0], **{**search, "seed": 4}).score
    assert [one.score for one in best] == [max(c.score for c in of) for of in found]
    assert any(one.text != of[0].text for one, of in zip(best, plain, strict=True))


def test_both_runtimes_agree(folder):
    sparse, xla = (
        Captioner.load(folder, backend=backend).candidates(FEATURES, consensus=25)
        for backend in ("sparse", "xla")
    )
    for ours, theirs in zip(sparse, xla, strict=True):
        assert [one.text for one in ours] == [one.text for one in theirs]
        scores = [[one.score for one in captions] for captions in (ours, theirs)]
        np.testing.assert_allclose(*scores, rtol=1e-5)
