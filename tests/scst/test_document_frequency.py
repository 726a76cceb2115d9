"""Document frequencies: counted, stored, and refused where they are broken."""

import collections

import numpy as np
import pytest

from sparsecap_jax.errors import DataError
from sparsecap_jax.scst.document_frequency import DocumentFrequency, count_documents, from_ngrams


def counted_slowly(references, eos=""):
    """Images of each n-gram, by the definition."""
    counts = collections.Counter()
    for captions in references:
        seen = set()
        for caption in captions:
            words = caption.split() + ([eos] if eos else [])
            for n in range(1, 5):
                seen |= {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}
        counts.update(seen)
    return counts


def random_references():
    rng = np.random.default_rng(0)
    words = [*"abcdefg", "ü"]
    return [
        [" ".join(rng.choice(words, rng.integers(0, 9))) for _ in range(rng.integers(1, 4))]
        for _ in range(60)
    ]


@pytest.mark.parametrize("eos", ["", "<eos>"])
def test_counts_are_those_of_the_definition(eos):
    references = random_references()
    found = count_documents(references, eos=eos)
    expected = counted_slowly(references, eos)
    assert len(found) == len(expected)
    assert all(found.document_count(ngram) == count for ngram, count in expected.items())
    assert found.num_images == 60
    assert found.document_count(("a", "zzz")) == found.document_count(()) == 0


def test_rare_words_become_the_unknown_word():
    found = count_documents(
        [["a b c"], ["a c"]], eos="<eos>", unk="UNK", known=["a", "b"], dataset="two"
    )
    expected = counted_slowly([["a b UNK"], ["a UNK"]], "<eos>")
    assert {ngram: found.document_count(ngram) for ngram in expected} == expected
    assert (found.eos, found.unk, found.dataset) == ("<eos>", "UNK", "two")


def test_save_and_load(tmp_path):
    first = count_documents(random_references(), eos="<eos>", dataset="random")
    first.save(tmp_path / "df.npz")
    again = DocumentFrequency.load(tmp_path / "df.npz")
    assert (again.words, again.num_images, again.eos) == (first.words, 60, "<eos>")
    assert (again.dataset, again.tokens) == ("random", "words")
    for ours, theirs in zip(first.counts, again.counts, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    ids = np.random.default_rng(1).integers(-1, 12, (50, 9))
    np.testing.assert_array_equal(first.idf(ids), again.idf(ids))


def test_ngrams_of_other_codes_may_lack_their_beginnings():
    found = from_ngrams({("b", "c", "d"): 2.0, ("a",): 3.0, ("a", "b", "c", "d"): 1.0}, 9)
    ngrams = [("b", "c", "d"), ("a",), ("a", "b", "c", "d"), ("b",), ("b", "c"), ("a", "b")]
    assert [found.document_count(ngram) for ngram in ngrams] == [2, 3, 1, 0, 0, 0]


def test_no_images():
    with pytest.raises(DataError, match="no images"):
        count_documents([])


def edited(path, **changes):
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files} | changes
    np.savez(path, **arrays)


def as_bytes(text):
    return np.frombuffer(text.encode(), np.uint8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"counts_2": np.zeros(1)}, "the table of 2-grams is not sorted or has gaps"),
        ({"words": as_bytes("a")}, "counts_1 does not fit num_images or words"),
        ({"header": as_bytes('{"format": "x"}')}, r"format and version are \('x', None\)"),
        ({"header": as_bytes("{")}, "document frequencies: "),
        ({"parents_3": np.array([0, 1, 99])}, "3-grams refers to missing entries"),
    ],
)
def test_broken_files_are_refused(tmp_path, changes, message):
    path = tmp_path / "df.npz"
    count_documents([["a b c d"]]).save(path)
    if "parents_3" in changes:
        changes = {"parents_3": np.array([0, 99], np.int32)}
    edited(path, **changes)
    with pytest.raises(DataError, match=message) as error:
        DocumentFrequency.load(path)
    assert str(path) in str(error.value)


def test_foreign_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        DocumentFrequency.load(tmp_path / "df.npz")
    (tmp_path / "df.npz").write_bytes(b"no zip")
    with pytest.raises(DataError, match="prepare_data df"):
        DocumentFrequency.load(tmp_path / "df.npz")
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(DataError, match="prepare_data df"):
        DocumentFrequency.load(tmp_path / "array.npy")
