import os
import pathlib
import re
import shutil
import threading

import jax
import numpy as np
from pipeline_files import CAPTIONS, WIDTH, WordTokenizer, assert_regions, assert_same, caption_ids

from sparsecap_jax.data.batches import make_eval_batches, pad_regions
from sparsecap_jax.data.karpathy import Record, load_karpathy
from sparsecap_jax.data.stores import NpyFolderStore


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
    before = threading.enumerate()
    iterator = iter(make_eval_batches(records, store, batch_size=1))
    assert next(iterator).index.tolist() == [0]
    assert [t for t in threading.enumerate() if t.name.startswith("eval-batches")]
    iterator.close()
    assert not [t for t in threading.enumerate() if t not in before]


def test_a_single_batch_needs_no_thread(records, store):
    batches = make_eval_batches(records, store, batch_size=1)
    before = threading.enumerate()
    iterator = batches.read(iter([3]))
    np.testing.assert_array_equal(next(iterator).index, batches[3].index)
    assert not [t for t in threading.enumerate() if t not in before]
    assert next(iterator, None) is None


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
    images = shared / "reference/coco5"
    shutil.copytree(images / "bu", tmp_path / "data/features", copy_function=os.symlink)
    (tmp_path / "data/coco").mkdir()
    os.symlink(images / "dataset_coco_testing.json", tmp_path / "data/coco/dataset_coco.json")
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
