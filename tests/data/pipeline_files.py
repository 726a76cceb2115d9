"""Eleven images with captions and features, and checks of the batches made of them."""

import jax
import numpy as np

from sparsecap_jax.data.pipeline import TrainData, make_train_iterator

WIDTH = 5
COUNTS = [3, 5, 2, 8, 4, 6, 3, 7, 2, 5, 9]  # regions of images 100, 101, ...
CAPTIONS = [5, 5, 1, 6, 2, 5, 5, 4, 5, 3, 5]
BOS, EOS = 2, 3


class WordTokenizer:
    """Caption "i c w" (image, caption, words) -> BOS, 10+i, 30+c, 50, 51, ..., EOS."""

    pad_id = 0

    def encode(self, text, max_length):
        image, caption, words = map(int, text.split())
        return [BOS, 10 + image, 30 + caption, *range(50, 50 + words), EOS][:max_length]


def caption_text(image, caption):
    return f"{image} {caption} {(3 * image + caption) % 8}"


def caption_ids(image, caption, length):
    """Padded ids and mask of one caption, by hand."""
    ids = WordTokenizer().encode(caption_text(image, caption), length)
    return ids + [0] * (length - len(ids)), [True] * len(ids) + [False] * (length - len(ids))


def make_data(records, store, **options):
    options = {"batch_size": 4, "seq_per_img": 3, "max_seq_length": 9, "seed": 7} | options
    return TrainData(records, store, WordTokenizer(), **({"region_buckets": (4, 9)} | options))


def make_iterator(records, store, **options):
    defaults = {"batch_size": 4, "seq_per_img": 3, "max_seq_length": 9, "seed": 7}
    defaults["region_buckets"] = (4, 9)
    return make_train_iterator(records, store, WordTokenizer(), **(defaults | options))


def assert_same(left, right):
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    for a, b in pairs:
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def assert_regions(regions, row, image, folder):
    """Compare one row with the files, padded by hand."""
    count, num_regions = COUNTS[image], regions.mask.shape[1]
    features = np.load(folder / f"cocobu_att/{100 + image}.npy")
    boxes = np.load(folder / f"cocobu_box_relative/{100 + image}.npy")
    np.testing.assert_array_equal(regions.features[row, :count], features)
    np.testing.assert_array_equal(regions.features[row, count:], 0)
    np.testing.assert_array_equal(regions.boxes[row, :count], boxes)
    np.testing.assert_array_equal(regions.boxes[row, count:], 0)
    np.testing.assert_allclose(regions.fc[row], features.mean(0), rtol=1e-6)
    assert regions.mask[row].tolist() == [True] * count + [False] * (num_regions - count)
