import collections
import json
import os
import pathlib
import re
import shutil
import threading
import time

import jax
import numpy as np
import pytest

from sparsecap_jax.data.features import NpyFolderStore
from sparsecap_jax.data.karpathy import Record, load_karpathy
from sparsecap_jax.data.pipeline import (
    TrainData,
    make_eval_batches,
    make_train_iterator,
    pad_regions,
    steps_per_epoch,
)
from sparsecap_jax.errors import CheckpointError, ConfigError, DataError

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipeline")
    for name in ("cocobu_att", "cocobu_box_relative"):
        (root / name).mkdir()
    rng = np.random.default_rng(0)
    for i, count in enumerate(COUNTS):
        np.save(
            root / f"cocobu_att/{100 + i}.npy", rng.normal(size=(count, WIDTH)).astype(np.float32)
        )
        corners = rng.uniform(size=(2, count, 2)).astype(np.float32)
        boxes = np.concatenate([corners.min(0), corners.max(0)], axis=1)
        np.save(root / f"cocobu_box_relative/{100 + i}.npy", boxes)
    return root


@pytest.fixture(scope="module")
def store(folder):
    return NpyFolderStore(folder, feature_size=WIDTH, need_boxes=True)


@pytest.fixture(scope="module")
def records():
    return [
        Record(100 + i, "train", captions=tuple(caption_text(i, c) for c in range(count)))
        for i, count in enumerate(CAPTIONS)
    ]


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


@pytest.mark.parametrize("consumed", [0, 1, 2, 5])
@pytest.mark.parametrize("prefetch", [0, 3])
def test_resume_is_exact(records, store, consumed, prefetch):
    whole = list(make_iterator(records, store, num_epochs=4, prefetch=0))
    assert len(whole) == 8
    first = make_iterator(records, store, prefetch=prefetch)
    for expected in whole[:consumed]:
        assert_same(next(first), expected)
    saved = json.dumps(first.get_state())
    first.close()
    second = make_iterator(records, store, num_epochs=4, prefetch=prefetch)
    next(second)
    second.set_state(json.loads(saved))
    assert second.step == consumed
    rest = list(second)
    assert len(rest) == 8 - consumed
    for batch, expected in zip(rest, whole[consumed:], strict=True):
        assert_same(batch, expected)
    assert second.get_state()["step"] == 8


def test_state_of_other_data_is_refused(records, store):
    iterator = make_iterator(records, store)
    state = make_iterator(records, store, seed=8, seq_per_img=2).get_state()
    with pytest.raises(CheckpointError, match="other data: seed was 8, is 7; seq_per_img was 2"):
        iterator.set_state(state)
    changed = [*records[:-1], Record(110, "train", captions=("1 1 1",))]
    with pytest.raises(CheckpointError, match="other data: sha256 was"):
        iterator.set_state(make_iterator(changed, store).get_state())
    with pytest.raises(CheckpointError, match=r"not a saved state: \{'step': 3}"):
        iterator.set_state({"step": 3})
    good = iterator.get_state()
    for wrong in ({"step": -1}, {"step": 1.0}, {"version": 2}):
        with pytest.raises(CheckpointError, match="cannot be used"):
            iterator.set_state(good | wrong)
    iterator.set_state(good)


def test_shards_are_the_rows_of_one_global_batch(records, store):
    options = {"token_buckets": (9, 10), "max_seq_length": 11, "region_buckets": (5, 8, 9)}
    options["seq_per_img"] = 1
    whole = make_data(records, store, **options)
    shards = [
        make_data(records, store, process_index=p, process_count=2, **options) for p in range(2)
    ]
    shapes = set()
    for step in range(20):
        parts = [shard[step] for shard in shards]
        assert_same(jax.tree.map(lambda *x: np.concatenate(x), *parts), whole[step])
        shapes.add((parts[0].regions.mask.shape[1], parts[0].tokens.shape[2]))
    assert len(shapes) > 4


def test_more_processes_continue_what_one_began(records, store):
    one = make_iterator(records, store)
    for _ in range(3):
        next(one)
    two = [make_iterator(records, store, process_index=p, process_count=2) for p in range(2)]
    for iterator in two:
        iterator.set_state(one.get_state())
    parts = [next(iterator) for iterator in two]
    assert_same(jax.tree.map(lambda *x: np.concatenate(x), *parts), next(one))
    assert two[0].get_state() == two[1].get_state() == one.get_state()


def test_each_process_reads_its_own_images_only(records, folder):
    class Recording(NpyFolderStore):
        def __getitem__(self, image_id):
            read.append(image_id - 100)
            return super().__getitem__(image_id)

    read = []
    recording = Recording(folder, feature_size=WIDTH)
    batch = make_data(records, recording, process_index=1, process_count=4)[0]
    assert batch.index.tolist() == read
    assert len(read) == 1


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


def test_more_regions_than_the_largest_bucket(records, store):
    data = make_data(records, store, region_buckets=(4, 8), batch_size=11)
    with pytest.raises(DataError, match=r"image 110 has 9 regions, .* region_buckets \[4, 8\]"):
        data[0]


def test_eval_batches_are_in_order_and_filled_up(records, store, folder):
    batches = make_eval_batches(records, store, batch_size=4, region_buckets=(5, 9))
    assert len(batches) == 3
    for _ in range(2):  # may be iterated again
        seen = list(batches)
        index = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, -1]
        assert np.concatenate([b.index for b in seen]).tolist() == index
        for batch in seen:
            assert batch.tokens.shape == batch.token_mask.shape == (4, 0, 0)
            for row, image in enumerate(batch.index):
                if image >= 0:
                    assert_regions(batch.regions, row, image, folder)
        filled = seen[-1].regions
        assert filled.mask[3].tolist() == [True] + [False] * 8
        assert not (filled.features[3].any() or filled.boxes[3].any() or filled.fc[3].any())


def test_eval_batches_with_captions_in_file_order(records, store):
    mixed = [*records[:5], Record(105)]
    batches = list(
        make_eval_batches(
            mixed, store, batch_size=4, tokenizer=WordTokenizer(), seq_per_img=3, max_seq_length=9
        )
    )
    for number, batch in enumerate(batches):
        for row in range(4):
            image = 4 * number + row
            count = min(3, CAPTIONS[image]) if image < 5 else 0
            for s in range(3):
                ids, mask = caption_ids(image, s % count, 9) if count else ([0] * 9, [False] * 9)
                assert batch.tokens[row, s].tolist() == ids
                assert batch.token_mask[row, s].tolist() == (mask if s < count else [False] * 9)


def test_eval_shards(records, store):
    options = {"batch_size": 8, "tokenizer": WordTokenizer(), "region_buckets": (5, 8, 9)}
    whole = list(make_eval_batches(records, store, **options))
    shards = [
        list(make_eval_batches(records, store, process_index=p, process_count=4, **options))
        for p in range(4)
    ]
    assert shards[2][1].index.tolist() == shards[3][1].index.tolist() == [-1, -1]
    for expected, *parts in zip(whole, *shards, strict=True):
        assert_same(jax.tree.map(lambda *x: np.concatenate(x), *parts), expected)


def test_eval_iteration_may_stop_early(records, store):
    iterator = iter(make_eval_batches(records, store, batch_size=1))
    assert next(iterator).index.tolist() == [0]
    iterator.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("eval-batches")]


def test_real_features_in_one_batch(shared):
    splits = load_karpathy(shared / "reference/coco5/dataset_coco_testing.json")
    records = splits["test"] + splits["train"][:1] + splits["val"] + splits["train"][1:]
    assert [r.image_id for r in records] == [391895, 522418, 184613, 57870, 384029]
    store = NpyFolderStore(shared / "reference/coco5", need_boxes=True)
    (batch,) = make_eval_batches(records, store, batch_size=5)
    assert batch.regions.features.shape == (5, 64, 2048)
    assert batch.regions.mask.sum(1).tolist() == [37, 21, 47, 31, 18]
    (row,) = make_eval_batches(splits["val"], store, batch_size=1, region_buckets=(47,))
    bu = shared / "reference/coco5/bu"
    np.testing.assert_array_equal(row.regions.features[0], np.load(bu / "cocobu_att/184613.npy"))
    boxes = np.load(bu / "cocobu_box_relative/184613.npy").astype(np.float32)
    np.testing.assert_array_equal(row.regions.boxes[0], boxes)


def test_pad_regions_without_boxes(folder):
    images = [NpyFolderStore(folder, feature_size=WIDTH)[100]]
    regions = pad_regions(images, 2, 4)
    assert regions.boxes.shape == (2, 4, 4)
    assert not regions.boxes.any()
    assert regions.mask.tolist() == [[True] * 3 + [False], [True] + [False] * 3]


def test_the_guide_runs(shared, tmp_path, monkeypatch, capsys):
    """The Python of docs/data.md, on the five real images."""
    (tmp_path / "data").mkdir()
    shutil.copytree(shared / "reference/coco5", tmp_path / "data/coco", copy_function=os.symlink)
    os.rename(
        tmp_path / "data/coco/dataset_coco_testing.json", tmp_path / "data/coco/dataset_coco.json"
    )
    monkeypatch.chdir(tmp_path)
    guide = pathlib.Path(__file__).parents[2] / "docs/data.md"
    blocks = re.findall(r"```python\n(.*?)```", guide.read_text(), re.DOTALL)
    names = {}
    exec("\n".join(blocks), names)
    names["batches"].close()
    assert capsys.readouterr().out.splitlines() == [
        "{'train': 3, 'val': 1, 'test': 1} 18 47",
        "(2, 36, 2048) (2, 5, 18)",
        "[ 0 -1]",
    ]
