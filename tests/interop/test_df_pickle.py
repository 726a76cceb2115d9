"""Document-frequency pickles: real ones, and ones that try something."""

import collections
import os
import pickle

import numpy as np
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


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_protocols(tmp_path, protocol):
    counts = collections.defaultdict(float, {("a",): 2.0, ("a", "ü"): 1.0})
    path = tmp_path / "df.p"
    path.write_bytes(pickle.dumps({"ref_len": 3, "document_frequency": counts}, protocol))
    found = load_df_pickle(path)
    assert found.num_images == 3
    assert found.document_count(("a", "ü")) == 1


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", [dict, collections.Counter, collections.OrderedDict])
@pytest.mark.parametrize("number", [int, np.float64, np.float32, np.int64, np.uint8])
def test_dicts_and_numbers(tmp_path, protocol, kind, number):
    path = tmp_path / "df.p"
    counts = kind({("a",): number(2), ("a", "dog"): number(1)})
    path.write_bytes(pickle.dumps({"ref_len": number(3), "document_frequency": counts}, protocol))
    found = load_df_pickle(path)
    assert found.num_images == 3
    assert found.document_count(("a", "dog")) == 1
    assert found.document_count(("a",)) == 2


def test_counts_of_big_endian_machines_and_default_dicts(tmp_path):
    path = tmp_path / "df.p"
    dtype = np.dtype(">f4")
    counts = collections.defaultdict(int, {("a",): np.array([2.5], dtype)[0]})
    content = pickle.dumps({"ref_len": 3, "document_frequency": counts}, 2)
    path.write_bytes(content.replace(b"X\x01\x00\x00\x00<", b"X\x01\x00\x00\x00>"))
    expected = np.frombuffer(np.float32(2.5).tobytes(), dtype)[0]  # read the other way round
    assert load_df_pickle(path).document_count(("a",)) == expected


# In the form of Python 2.7's cPickle: {"ref_len": 3, "document_frequency": {("caf\xc3\xa9",): 1.0,
# ("caf\xe9", "a"): 1.0}}
PYTHON2 = {
    0: b"(dp1\nS'ref_len'\np2\nI3\nsS'document_frequency'\np3\n(dp4\n(S'caf\\xc3\\xa9'\np5\ntp6\n"
    b"F1\ns(S'caf\\xe9'\np7\nS'a'\np8\ntp9\nF1\nss.",
    2: b"\x80\x02}q\x01(U\x07ref_lenq\x02K\x03U\x12document_frequencyq\x03}q\x04(U\x05caf\xc3\xa9"
    b"q\x05\x85q\x06G?\xf0\0\0\0\0\0\0U\x04caf\xe9q\x07U\x01aq\x08\x86q\tG?\xf0\0\0\0\0\0\0uu.",
}


@pytest.mark.parametrize("protocol", PYTHON2)
def test_text_of_python_2(tmp_path, protocol):
    """UTF-8, or Latin-1 where it is not."""
    path = tmp_path / "df.p"
    path.write_bytes(PYTHON2[protocol])
    found = load_df_pickle(path)
    assert found.document_count(("café",)) == 1
    assert found.document_count(("café", "a")) == 1
    assert len(found) == 3  # with the word "a"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"(dcnumpy\ndtype\n(S'O8'\ntR", "a dtype 'O8'"),
        (b"cnumpy\ndtype\n(S'f8'\ntR(I3\nS'x'\ntb", "a dtype with the state"),
        (b"cnumpy.core.multiarray\nscalar\n(S'f8'\nS'12345678'\ntR", "without its type or bytes"),
        (b"cnumpy\ndtype\n(dS'function'\nS'x'\nsb", "attribute"),
        (b"ccollections\nCounter\n((ltR", "instruction LIST"),
        (b"(dccollections\ndefaultdict\n(S'x'\ntR", "a defaultdict of"),
        (b"((((I1\ntttI2\nd", "a dict key that is neither text"),
        (b"(c" + b"x" * 2**25, "no newline found"),
        (b"T\xff\xff\xff\x7f", "an argument of 2147483647 bytes"),
        (b"(S'ref_len'\nI3\nd\0", "is no instruction"),
    ],
)
def test_odd_programs_are_refused(tmp_path, content, message):
    path = tmp_path / "df.p"
    path.write_bytes(content + b".")
    with pytest.raises(DataError, match=f"not a document-frequency pickle: .*{message}"):
        load_df_pickle(path)


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
        ({"ref_len": float(np.log(np.float32(3))), "document_frequency": {("a",): 1}}, "ref_len"),
        ({"ref_len": 2, "document_frequency": {("a",): 3.0}}, r"count 3, but .* for 2 images"),
        ({"ref_len": 2, "document_frequency": {}}, "not a dict of n-grams"),
        ({"ref_len": 2, "document_frequency": {"a": 1}}, "n-gram 'a'"),
        ({"ref_len": 2, "document_frequency": {("a",) * 5: 1}}, "expected a tuple of one to 4"),
        ({"ref_len": 2, "document_frequency": {("a",): -1.0}}, "has the count -1.0"),
        ({"ref_len": 2, "document_frequency": {("a",): b"x"}}, "has the count b'x'"),
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


@pytest.mark.parametrize("images", [3, 82_783, 113_287])
def test_the_logarithm_of_the_number_of_images(tmp_path, images):
    path = tmp_path / "df.p"
    counts = {("a",): 2.0, ("<eos>",): float(images)}
    content = {"ref_len": float(np.log(float(images))), "document_frequency": counts}
    path.write_bytes(pickle.dumps(content))
    found = load_df_pickle(path)
    assert found.num_images == images
    assert found.document_count(("a",)) == 2


def test_words_may_be_bytes(tmp_path):
    path = tmp_path / "df.p"
    counts = {(b"caf\xc3\xa9",): 2.0, (b"caf\xe9", b"a"): 1.0}
    path.write_bytes(pickle.dumps({"ref_len": 3, "document_frequency": counts}))
    found = load_df_pickle(path)
    assert found.document_count(("café",)) == 2
    assert found.document_count(("café", "a")) == 1


def test_names_with_line_breaks_stay_in_one_line(tmp_path):
    (tmp_path / "words.p").write_bytes(b"\x80\x04\x8c\x0c\ncollections\x8c\x0bdefaultdict\x93.")
    message = r"words\.p: not a document-frequency pickle: .*asks for the global ' collections\.de"
    with pytest.raises(DataError, match=message):
        load_df_pickle(tmp_path / "words.p")
