import json

import jax
import numpy as np
import pytest
from pipeline_files import WIDTH, assert_same, make_data, make_iterator

from sparsecap_jax.data.karpathy import Record
from sparsecap_jax.data.stores import NpyFolderStore
from sparsecap_jax.errors import CheckpointError


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
