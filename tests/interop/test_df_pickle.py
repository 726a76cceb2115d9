"""Document-frequency pickles: real ones, and ones that try something."""

import collections
import os
import pickle

import pytest

from sparsecap_jax.errors import DataError
from sparsecap_jax.interop.df_pickle import load_df_pickle


def test_real_words(shared):
    found = load_df_pickle(shared / "data/ngram_df_pickles/coco-train-words.p")
    assert (found.num_images, found.tokens, found.eos, found.unk) == (1680, "words", "<eos>", "UNK")
    # Read off by hand with pickletools, in the order of the file.
    assert found.document_count(("A", "storage", "tank", "is")) == 21
    assert found.document_count(("some", "mark")) == 80
    assert found.document_count(("with", "sky", "blue", "UNK")) == 2
    assert found.document_count(("<eos>",)) == 1680


def test_real_word_numbers(shared):
    found = load_df_pickle(shared / "data/ngram_df_pickles/coco-train-idxs.p")
    assert (found.num_images, found.tokens, found.eos, found.unk) == (1680, "ids", "0", "")
    assert found.document_count(("165", "274", "243")) == 26
    assert found.document_count(("0",)) == 1680


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_protocols(tmp_path, protocol):
    counts = collections.defaultdict(float, {("a",): 2.0, ("a", "ü"): 1.0})
    path = tmp_path / "df.p"
    path.write_bytes(pickle.dumps({"ref_len": 3, "document_frequency": counts}, protocol))
    found = load_df_pickle(path)
    assert found.num_images == 3
    assert found.document_count(("a", "ü")) == 1


class Command:
    """Unpickled, it would make a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_nothing_is_executed(tmp_path):
    path = tmp_path / "df.p"
    path.write_bytes(pickle.dumps({"ref_len": Command(tmp_path / "made"), "document_frequency": 1}))
    with pytest.raises(DataError, match=r"df\.p: .*global '(posix|nt)\.mkdir'; nothing was exec"):
        load_df_pickle(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"ref_len": 3}, "expected a dict of ref_len and document_frequency"),
        ({"ref_len": 0, "document_frequency": {("a",): 1}}, "ref_len is 0"),
        ({"ref_len": 2.5, "document_frequency": {("a",): 1}}, "ref_len is 2.5"),
        ({"ref_len": 2, "document_frequency": {}}, "not a dict of n-grams"),
        ({"ref_len": 2, "document_frequency": {"a": 1}}, "n-gram 'a'"),
        ({"ref_len": 2, "document_frequency": {("a",) * 5: 1}}, "expected a tuple of one to 4"),
        ({"ref_len": 2, "document_frequency": {("a",): -1.0}}, "has the count -1.0"),
        ({"ref_len": 2, "document_frequency": {("a",): b"x"}}, "global '_codecs.encode'"),
        ({"ref_len": 2, "document_frequency": {("a",): "x"}}, "has the count 'x'"),
    ],
)
def test_other_forms_are_refused(tmp_path, content, message):
    path = tmp_path / "df.p"
    path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(DataError, match=message) as error:
        load_df_pickle(path)
    assert str(path) in str(error.value)


def test_truncated_and_missing(tmp_path):
    path = tmp_path / "df.p"
    with pytest.raises(DataError, match="no such file"):
        load_df_pickle(path)
    path.write_bytes(pickle.dumps({"ref_len": 3})[:-4])
    with pytest.raises(DataError, match="not a document-frequency pickle"):
        load_df_pickle(path)
