import collections
import threading
import time

import jax
import numpy as np
import pytest
from pipeline_files import (
    BOS,
    CAPTIONS,
    COUNTS,
    EOS,
    WIDTH,
    assert_regions,
    assert_same,
    caption_ids,
    make_data,
    make_iterator,
)

from sparsecap_jax.data.features import RegionFeatures
from sparsecap_jax.data.karpathy import Record
from sparsecap_jax.data.pipeline import make_eval_batches, steps_per_epoch
from sparsecap_jax.data.stores import NpyFolderStore
from sparsecap_jax.errors import ConfigError, DataError


def chosen(batch):
    """(image, caption) of every row that counts, per image of the batch."""
    return [
        [(int(t[1]) - 10, int(t[2]) - 30) for t, m in zip(tokens, masks, strict=True) if m.any()]
        for tokens, masks in zip(batch.tokens, batch.token_mask, strict=True)
    ]


def test_training_batches_hold_what_the_files_hold(records, store, folder):
    data = make_data(records, store)
    for step in range(6):
        batch = data[step]
        assert batch.tokens.shape == batch.token_mask.shape == (4, 3, 9)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(batch)} == {"float32", "int32", "bool"}
        longest = max(COUNTS[i] for i in batch.index)
        assert batch.regions.features.shape == (4, 4 if longest <= 4 else 9, WIDTH)
        for row, image in enumerate(batch.index):
            assert_regions(batch.regions, row, image, folder)
            captions = chosen(batch)[row]
            assert len(set(captions)) == len(captions) == min(3, CAPTIONS[image])
            for s, (of, caption) in enumerate(captions):
                assert of == image
                ids, mask = caption_ids(image, caption, 9)
                assert batch.tokens[row, s].tolist() == ids
                assert batch.token_mask[row, s].tolist() == mask


def test_images_with_few_captions_repeat_them_without_counting(records, store):
    data = make_data(records, store)
    seen = 0
    for step in range(20):
        batch = data[step]
        for row, image in enumerate(batch.index):
            if CAPTIONS[image] < 3:
                seen += 1
                count = CAPTIONS[image]
                for s in range(count, 3):
                    np.testing.assert_array_equal(
                        batch.tokens[row, s], batch.tokens[row, s % count]
                    )
                    assert not batch.token_mask[row, s].any()
    assert seen > 10


def test_every_epoch_is_another_order_of_all_images(records, store):
    data = make_data(records, store, batch_size=3)
    assert data.steps_per_epoch == steps_per_epoch(11, 3) == 3
    orders = [
        np.concatenate([data[3 * epoch + k].index for k in range(3)]).tolist() for epoch in range(8)
    ]
    assert all(len(set(order)) == 9 for order in orders)
    assert len(set(map(tuple, orders))) == 8
    # what drop-last leaves out changes: after some epochs every image was seen
    assert {image for order in orders for image in order} == set(range(11))


def test_order_depends_on_seed_and_epoch_only(records, store):
    first, other = make_data(records, store), make_data(records, store, seed=8)
    bare = [Record(r.image_id, "train", captions=("1 1 1",)) for r in records]
    same = make_data(bare, store, seq_per_img=1, max_seq_length=5, region_buckets=(9,))
    orders = [[d[k].index.tolist() for k in range(2, 6)] for d in (first, other, same)]
    assert orders[0] == orders[2]
    assert orders[0] != orders[1]


def test_captions_are_drawn_evenly(records, store):
    data = make_data(records, store, batch_size=11)
    drawn = collections.Counter(c for e in range(400) for row in chosen(data[e]) for c in row)
    for image, count in enumerate(CAPTIONS):
        expected = 400 * min(3, count) / count
        for caption in range(count):
            # six standard deviations of a binomial count
            spread = 6 * np.sqrt(expected * (1 - min(3, count) / count))
            assert abs(drawn[image, caption] - expected) <= spread


def test_long_captions_are_cut_without_eos(records, store):
    batch = make_data(records, store, batch_size=11, max_seq_length=5)[0]
    assert batch.tokens.shape == (11, 3, 5)
    for row, image in enumerate(batch.index):
        for s, (_, caption) in enumerate(chosen(batch)[row]):
            words = (3 * image + caption) % 8
            assert (EOS in batch.tokens[row, s]) == (words <= 1)
            assert batch.token_mask[row, s].sum() == min(5, words + 4)


def test_token_buckets(records, store):
    plain = make_data(records, store, batch_size=2, max_seq_length=11)
    data = make_data(records, store, batch_size=2, max_seq_length=11, token_buckets=(8, 9, 40))
    lengths = collections.Counter()
    for step in range(40):
        expected, batch = plain[step], data[step]
        longest = max(len([t for t in row if t]) for row in expected.tokens.reshape(-1, 11))
        length = next(t for t in (8, 9, 11) if t >= longest)
        assert batch.tokens.shape == (2, 3, length)
        np.testing.assert_array_equal(batch.tokens, expected.tokens[..., :length])
        np.testing.assert_array_equal(batch.token_mask, expected.token_mask[..., :length])
        lengths[length] += 1
    assert set(lengths) == {8, 9, 11}


def test_grouped_batches_pad_less_and_still_visit_every_image(records, store):
    options = {"batch_size": 2, "region_buckets": tuple(range(1, 10))}
    padded = {}
    for group in (0, 5):
        data = make_data(records, store, group_batches=group, **options)
        padded[group] = sum(data[k].regions.mask.size for k in range(50))
        for epoch in range(10):
            images = np.concatenate([data[5 * epoch + k].index for k in range(5)])
            assert len(set(images.tolist())) == 10
    assert padded[5] < 0.85 * padded[0]
    orders = {
        tuple(np.concatenate([data[5 * e + k].index for k in range(5)]).tolist()) for e in range(10)
    }
    assert len(orders) == 10


def sample(text, rng):
    image, caption, _ = map(int, text.split())
    return [BOS, 10 + image, 30 + caption, *rng.integers(50, 90, 9).tolist(), EOS]


def test_sampled_tokens_depend_on_seed_and_epoch(records, store):
    data, again = [make_data(records, store, sample_tokens=sample) for _ in range(2)]
    plain = make_data(records, store)
    for step in (3, 0, 5):
        assert_same(data[step], again[step])
        assert chosen(data[step]) == chosen(plain[step])
        assert data[step].tokens.shape == (4, 3, 9)
    whole = make_data(records, store, batch_size=11, sample_tokens=sample)
    by_epoch = [
        {tuple(c[:3]): tuple(c) for row in whole[e].tokens.tolist() for c in row} for e in range(2)
    ]
    assert len({ids[3:] for ids in by_epoch[0].values()}) == len(by_epoch[0])
    both = set(by_epoch[0]) & set(by_epoch[1])
    assert len(both) > 10
    assert all(by_epoch[0][key] != by_epoch[1][key] for key in both)


class SlowStore(NpyFolderStore):
    """Counts reads; some other thread than the caller's must do them."""

    reads = 0
    threads: set

    def __getitem__(self, image_id):
        self.reads += 1
        self.threads.add(threading.current_thread())
        return super().__getitem__(image_id)


def test_prefetch_is_bounded_and_in_the_background(records, folder):
    slow = SlowStore(folder, feature_size=WIDTH)
    slow.threads = set()
    iterator = make_iterator(records, slow, prefetch=3, num_threads=1)
    next(iterator)
    deadline = time.monotonic() + 20
    while slow.reads < 4 * 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert slow.reads == 4 * 4  # one batch handed out, three ahead
    assert threading.current_thread() not in slow.threads
    iterator.close()


def test_data_errors_come_out_of_the_iterator(records, tmp_path):
    (tmp_path / "cocobu_att").mkdir()
    for i in range(11):
        np.save(tmp_path / f"cocobu_att/{100 + i}.npy", np.full((2, WIDTH), 1.0, np.float32))
    bad = np.ones((2, WIDTH), np.float32)
    bad[1, 1] = np.nan
    np.save(tmp_path / "cocobu_att/104.npy", bad)
    store = NpyFolderStore(tmp_path, feature_size=WIDTH)
    with pytest.raises(DataError, match=r"104\.npy: features: 1 values are NaN"):
        list(make_iterator(records, store, batch_size=11, num_epochs=1))
    with pytest.raises(DataError, match=r"104\.npy: features: 1 values are NaN"):
        list(make_eval_batches(records, store, batch_size=2))


def test_missing_images_are_reported_before_training(records, store):
    more = [*records, Record(1, captions=("1 1 1",)), Record("x", captions=("1 1 1",))]
    with pytest.raises(DataError, match="no file for 2 of 13 images: 1, x"):
        make_data(more, store)
    with pytest.raises(DataError, match="no file for 2 of 13 images: 1, x"):
        make_eval_batches(more, store, batch_size=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 12}, "batch_size: 12 exceeds the 11 images"),
        ({"batch_size": 0}, "batch_size: expected a positive multiple"),
        ({"batch_size": 3, "process_count": 2}, "multiple of the 2 processes, found 3"),
        ({"process_index": 1}, "process_index: expected 0 to 0"),
        ({"seq_per_img": 0}, "seq_per_img: expected at least 1, found 0"),
        ({"max_seq_length": 0}, "max_seq_length: expected at least 1, found 0"),
        ({"region_buckets": ()}, "region_buckets: expected positive sizes"),
        ({"region_buckets": (0, 9)}, "region_buckets: expected positive sizes"),
        ({"seed": -1}, "seed, group_batches: at least 0, found -1, 0"),
    ],
)
def test_bad_options(records, store, options, message):
    with pytest.raises(ConfigError, match=message):
        make_data(records, store, **options)


def test_records_that_cannot_be_trained_on(records, store):
    with pytest.raises(DataError, match="image 100 has no captions"):
        make_data([Record(100), *records[1:]], store)
    with pytest.raises(DataError, match="the split has no images"):
        make_eval_batches([], store, batch_size=2)


def test_more_regions_than_the_largest_bucket(records, store, folder):
    batch = make_data(records, store, region_buckets=(4, 8), batch_size=11, seq_per_img=1)[0]
    assert batch.regions.mask.shape == (11, 16)
    for row, image in enumerate(batch.index):
        assert_regions(batch.regions, row, image, folder)


class OneImage(dict):
    feature_size = WIDTH

    def check(self, image_ids):
        assert list(image_ids) == [7]

    def num_regions(self, image_id):
        return len(self[image_id].features)


@pytest.mark.parametrize(
    ("buckets", "regions", "padded"),
    [((20,), 20, 20), ((20,), 47, 64), ((20, 50), 47, 50), ((200,), 150, 200), ((20,), 101, 200),
     ((20,), 200, 200), ((20, 130), 131, 200)],
)  # fmt: skip
def test_buckets_beyond_the_largest(buckets, regions, padded):
    ones = np.ones((regions, WIDTH), np.float32)
    store = OneImage({7: RegionFeatures(ones, None, ones[0])})
    (batch,) = make_eval_batches([Record(7)], store, batch_size=1, region_buckets=buckets)
    assert batch.regions.mask.shape == (1, padded)
    assert batch.regions.mask.sum() == regions
