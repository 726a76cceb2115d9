"""The captioner that comes with the package."""

import json

import pytest

from sparsecap_jax.captioner import Captioner
from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.pruning.summary import weight_counts
from sparsecap_jax.runs import published
from sparsecap_jax.runs.directory import load_run

NAME = "flickr8k-mini"


def test_it_is_small_sparse_and_whole():
    folder = published.find(NAME)
    assert (folder / "weights.npz").stat().st_size < 600_000
    assert weight_counts(load_run(folder).params)["sparsity"] >= 0.949
    text = (folder / "config.json").read_text()
    assert "/work" not in text and "/home" not in text
    assert json.loads((folder / "extractor.json").read_text())["extractor"] == "lite0"


def test_names():
    assert NAME in published.names()
    with pytest.raises(CheckpointError, match=NAME):
        published.find("flickr9k")


# Said by the checkpoint on its training machine, right (a table) or wrong (the man rides a
# motorbike); the photos are COCO's, not of its training set.
SAID = {
    "val2014/COCO_val2014_000000391895.jpg": {"man", "red", "shirt", "hill"},
    "train2014/COCO_train2014_000000057870.jpg": {"table", "glass"},
}


@pytest.mark.shared
def test_photos_are_captioned(shared):
    paths = [shared / "data" / "coco_five" / name for name in SAID]
    found = Captioner.load(NAME).caption_photos(paths, batch_size=2)
    for caption, words in zip(found, SAID.values(), strict=True):
        assert words <= set(caption.text.split()), caption.text
