"""The compiled scorers against the host's, and words out of tokens against the tokenizers."""

import jax
import numpy as np
import pytest

from sparsecap_jax.scst.document_frequency import count_documents
from sparsecap_jax.scst.scorers import HostScorer, idf_tables, score_on_device
from sparsecap_jax.scst.words import References, Vocabulary, word_table
from sparsecap_jax.tokenizers import TOKENIZERS, train_tokenizer

SETS, CAPTIONS = 10_000, 1


def random_texts(rng, count, words, longest):
    """Captions of few words, so that n-grams repeat; one in twenty is empty."""
    lengths = rng.integers(0, longest + 1, count) * (rng.random(count) > 0.05)
    return [" ".join(rng.choice(words, length)) for length in lengths]


def test_equals_the_host_on_ten_thousand_caption_sets():
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(12)]
    seen = [random_texts(rng, 3, words[:9], 12) for _ in range(300)]
    frequency = count_documents(seen, eos="<eos>")
    references = [
        random_texts(rng, rng.integers(1, 6), words[:11], 45 if i < 100 else 14)
        for i in range(SETS)
    ]
    captions = [random_texts(rng, CAPTIONS, words, 16) for _ in range(SETS)]
    host = HostScorer(frequency, references)
    ids, lengths = host.vocabulary.encode([text for texts in captions for text in texts])
    ids, lengths = ids.reshape(SETS, CAPTIONS, -1), lengths.reshape(SETS, CAPTIONS)
    tables, score = idf_tables(frequency), jax.jit(score_on_device)
    for start in range(0, SETS, 2500):
        some = np.arange(start, start + 2500)
        known, known_lengths = host.references.gather(some)
        found = score(tables, ids[some], lengths[some], known, known_lengths)
        cider_d, bleu = host.score_ids(ids[some], lengths[some], some)
        np.testing.assert_allclose(found[0], cider_d, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[1], bleu, rtol=1e-5, atol=1e-12)


def test_idf_of_known_and_unknown_ngrams():
    frequency = count_documents([["a b a b", "a c"], ["a b"], ["d"]])
    # Images with (a), (a b), (a b a), (a b a b); then (c ...): (c) is in one, (c a) in none.
    ids, _ = Vocabulary(frequency.words).encode(["a b a b", "c a e d"])
    expected = np.log(3) - np.log(
        [
            [[2, 2, 1, 1], [2, 1, 1, 1], [2, 2, 1, 1], [2, 1, 1, 1]],
            [[1, 1, 1, 1], [2, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]],
        ]
    )
    np.testing.assert_allclose(frequency.idf(ids), expected, rtol=1e-15)
    np.testing.assert_allclose(idf_tables(frequency)(ids), expected, rtol=1e-6, atol=1e-7)


CORPUS = ["a man on a horse", "a red horse", "two men and a dog", "the dog on the red horse"] * 5


@pytest.mark.parametrize(
    ("name", "options"), [("word", {}), ("radix", {"radix_base": 3}), ("radix", {"radix_base": 50})]
)
def test_words_of_tokens_are_those_of_the_decoded_text(tmp_path, name, options):
    config = {"name": name, "vocab_size": 14, **options}
    tokenizer = train_tokenizer(config, CORPUS, tmp_path / "tokenizer")
    vocabulary = Vocabulary(["zebra", "<unk>"])
    table = word_table(tokenizer, vocabulary)
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, tokenizer.vocab_size, (400, 7)).astype(np.int32)
    texts, lengths = [], np.full(400, 7, np.int32)
    for row in range(400):
        ends = np.flatnonzero(tokens[row] == tokenizer.eos_id)
        if len(ends):
            lengths[row] = ends[0] + 1
            tokens[row, ends[0] + 1 :] = tokenizer.pad_id
        if name == "radix":  # a BOS among digits is none, and cannot be sampled into one here
            tokens[row][tokens[row] == tokenizer.bos_id] = 1
        texts.append(tokenizer.decode(tokens[row][: lengths[row]]))
    words, counts = jax.jit(table.__call__)(tokens, lengths)
    expected, expected_counts = vocabulary.encode(texts)
    np.testing.assert_array_equal(counts, expected_counts)
    width = expected.shape[1]
    np.testing.assert_array_equal(np.asarray(words)[:, :width], expected)
    assert np.all(np.asarray(words)[:, width:] == -1)


@pytest.mark.parametrize("name", sorted(set(TOKENIZERS) - {"word", "radix", "character"}))
def test_subwords_have_no_table(tmp_path, name):
    config = {"name": name, "vocab_size": 28}
    tokenizer = train_tokenizer(config, CORPUS, tmp_path / "tokenizer")
    assert word_table(tokenizer, Vocabulary()) is None


def test_an_unknown_reference_word_never_equals_a_sampled_unknown(tmp_path):
    tokenizer = train_tokenizer({"name": "word", "vocab_size": 14}, CORPUS, tmp_path / "t")
    frequency = count_documents([["a zebra on a horse"], ["a red dog"]])
    vocabulary = Vocabulary(frequency.words)
    table = word_table(tokenizer, vocabulary)
    references = References([["zebra zebra zebra zebra zebra"]], vocabulary)
    sampled = np.array([[tokenizer.encode("zebra", add_special=False) * 5]], np.int32)
    assert np.all(sampled == tokenizer.unk_id)
    words, lengths = table(sampled, np.array([[5]], np.int32))
    known = references.gather(np.array([0]))
    cider_d, bleu = jax.jit(score_on_device)(idf_tables(frequency), words, lengths, *known)
    assert float(cider_d[0, 0]) == 0
    assert float(bleu[0, 0, 0]) < 1e-14
