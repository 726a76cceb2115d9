"""The guard against document frequencies of another dataset, on real captions."""

import collections
import json

import pytest

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.interop.df_pickle import load_df_pickle
from sparsecap_jax.scst.document_frequency import count_documents
from sparsecap_jax.scst.guard import check_document_frequency, coverage


@pytest.fixture(scope="module")
def coco(shared):
    path = shared / "data/coco_karpathy_test/references.json"
    texts = list(json.loads(path.read_text()).values())[:1500]
    return [[text.lower().strip(" .") for text in captions] for captions in texts]


@pytest.fixture(scope="module")
def flickr(shared):
    images = json.loads((shared / "data/flickr8k_1k/captions.json").read_text())["images"]
    return [[text.lower().strip(" .") for text in image["captions"]] for image in images]


def test_frequencies_of_the_same_captions_are_fine(coco):
    assert coverage(count_documents(coco), coco) == 1
    assert check_document_frequency(count_documents(coco), coco, "coco.npz") == ""


def test_rare_words_mapped_to_one_are_fine(coco):
    counts = collections.Counter(" ".join(text for texts in coco for text in texts).split())
    known = [word for word, count in counts.items() if count >= 5]
    frequency = count_documents(coco, eos="<eos>", unk="UNK", known=known)
    assert 0.6 < coverage(frequency, coco) < 1
    assert check_document_frequency(frequency, coco, "coco.npz") == ""


def test_frequencies_of_another_dataset_are_reported(coco, flickr):
    frequency = count_documents(flickr, dataset="Flickr8k")
    found = check_document_frequency(frequency, coco, "flickr.npz")
    assert found.startswith("FOREIGN DOCUMENT FREQUENCIES: flickr.npz (1,000 images, Flickr8k)")
    assert "1,500 images" in found


def test_half_of_the_ngrams_by_hand():
    # 4-grams of the captions: a b c d, b c d e, and nothing of the short one.
    assert coverage(count_documents([["a b c d"]]), [["a b c d e"], ["a b"]]) == 0.5
    assert coverage(count_documents([["a b c d"]]), [["a b"]]) == 1


def test_word_numbers_are_refused(shared, coco):
    frequency = load_df_pickle(shared / "data/ngram_df_pickles/coco-train-idxs.p")
    with pytest.raises(ConfigError, match="counts word numbers of another vocabulary"):
        check_document_frequency(frequency, coco, "coco-train-idxs.npz")
