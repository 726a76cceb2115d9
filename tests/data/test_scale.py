"""What COCO's size asks of the pipeline: bounded memory, workers, reading ahead."""

import itertools
import json
import os
import pathlib
import pickle
import sys

import jax
import numpy as np
import psutil
import pytest

from sparsecap_jax.data.batches import read_ahead
from sparsecap_jax.data.cache import CachedStore
from sparsecap_jax.data.pipeline import make_train_iterator
from sparsecap_jax.errors import ConfigError, DataError

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))

from synthetic import COCO_TRAIN, SyntheticStore, synthetic_records

WIDTH = 32


class LengthTokenizer:
    """One id per word, its length."""

    pad_id = 0

    def encode(self, text, max_length):
        return [2, *map(len, text.split()), 3][:max_length]


RECORDS = synthetic_records(40, ["a bb ccc", "dddd e", "ff g hhh iiii"], per_image=3)


class BrokenStore(SyntheticStore):
    def __getitem__(self, image_id):
        if image_id == 17:
            raise DataError("image 17: truncated")
        return super().__getitem__(image_id)


def make(store=None, **options):
    store = store or CachedStore(SyntheticStore(40, WIDTH, (3, 9)), max_bytes=20_000)
    defaults = {"batch_size": 4, "seq_per_img": 2, "region_buckets": (6, 9), "seed": 3}
    return make_train_iterator(RECORDS, store, LengthTokenizer(), **(defaults | options))


def assert_same(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(a, b)


def test_workers_give_the_same_batches_and_resume_in_mid_epoch():
    expected = list(itertools.islice(make(), 14))
    workers = make(num_workers=2)
    for batch in expected[:5]:
        assert_same(next(workers), batch)
    state = json.loads(json.dumps(workers.get_state()))
    workers.close()
    assert state["step"] == 5
    again = make(num_workers=2)
    again.set_state(state)
    for batch in expected[5:]:
        assert_same(next(again), batch)
    assert again.step == 14
    again.close()


def test_errors_in_workers_come_out():
    broken = make(BrokenStore(40, WIDTH, (3, 9)), num_workers=1, num_epochs=1)
    with pytest.raises(DataError, match="image 17: truncated"):
        list(broken)
    broken.close()


def test_every_worker_has_its_share_of_the_cache():
    store = SyntheticStore(40, WIDTH, (3, 9))
    cache = CachedStore(store, max_bytes=9000, min_free_ram=0.0, dtype="float16")
    for image_id in range(40):
        cache[image_id]
    assert 8000 < cache.nbytes <= 9000
    part = pickle.loads(pickle.dumps(cache.share(3)))
    for image_id in range(40):
        np.testing.assert_array_equal(part[image_id].features, cache[image_id].features)
    assert 2000 < part.nbytes <= 3000
    sent = pickle.loads(pickle.dumps(cache))
    assert (len(sent), sent.nbytes) == (0, 0)


def test_float16_cache_rounds_alike_whether_it_keeps_or_not():
    store = SyntheticStore(10, WIDTH, (3, 9), need_boxes=True)
    exact = CachedStore(store, min_free_ram=0.0)
    half = CachedStore(store, min_free_ram=0.0, dtype="float16")
    off = CachedStore(store, min_free_ram=1.0, dtype="float16")
    for image_id in range(10):
        expected = store[image_id].features.astype(np.float16).astype(np.float32)
        for cache in (half, half, off):  # read, kept, never kept
            regions = cache[image_id]
            np.testing.assert_array_equal(regions.features, expected)
            np.testing.assert_array_equal(regions.boxes, store[image_id].boxes)
            assert regions.features.dtype == np.float32
        exact[image_id]
    features = sum(store[i].features.nbytes for i in range(10))
    assert exact.nbytes - half.nbytes == features // 2
    with pytest.raises(ConfigError, match="cache_dtype: expected float32 or float16, found 'int8'"):
        CachedStore(store, dtype="int8")

    class Large(SyntheticStore):
        def __getitem__(self, image_id):
            image = super().__getitem__(image_id)
            image.features[0, 0] = 1e6
            return image

    with pytest.raises(DataError, match="image 3: features are too large for float16"):
        CachedStore(Large(10, WIDTH, (3, 9)), dtype="float16")[3]


def test_synthetic_store_is_a_function_of_the_id():
    store, again = (SyntheticStore(50, WIDTH, (10, 100), need_boxes=True) for _ in range(2))
    counts = [store.num_regions(i) for i in range(50)]
    assert min(counts) >= 10
    assert max(counts) <= 100
    for image_id in (0, 49):
        assert_same_image(store[image_id], again[image_id], counts[image_id])
    with pytest.raises(DataError, match=r"no images \[50, 'x'\]"):
        store.check([1, 50, "x"])
    with pytest.raises(ConfigError, match=r"0 images of \(10, 100\) regions"):
        SyntheticStore(0)


def assert_same_image(a, b, count):
    np.testing.assert_array_equal(a.features, b.features)
    np.testing.assert_array_equal(a.boxes, b.boxes)
    assert a.features.shape == (count, WIDTH)
    assert (a.boxes[:, :2] <= a.boxes[:, 2:]).all()


def test_memory_is_flat_over_many_images_of_full_size():
    """A full-size index, 1,500 images of it: 600 MB pass through, and do not stay."""
    records = synthetic_records(COCO_TRAIN, ["a bb ccc"], per_image=1)
    store = CachedStore(SyntheticStore(), max_bytes=50 << 20, min_free_ram=0.0)
    batches = make_train_iterator(
        records, store, LengthTokenizer(), batch_size=15, seq_per_img=1, prefetch=2
    )
    process = psutil.Process(os.getpid())
    for _ in range(30):
        next(batches)
    before = process.memory_info().rss
    passed = sum(next(batches).regions.features.nbytes for _ in range(70))
    assert passed > 600e6
    assert process.memory_info().rss - before < 100e6
    assert store.nbytes <= 50 << 20
    batches.close()


@pytest.mark.parametrize("size", [0, 1, 3])
def test_read_ahead(size):
    taken = []

    def items():
        for number in range(5):
            taken.append(number)
            yield number

    seen = []
    for item in read_ahead(items(), size):
        seen.append(item)
        assert len(taken) == min(5, item + 1 + size)
    assert seen == list(range(5))
    assert list(read_ahead(iter(()), size)) == []
