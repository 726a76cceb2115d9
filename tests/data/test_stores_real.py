"""Five real COCO images through every store: the same features, and so the same captions."""

import json

import numpy as np
import pytest
import store_files

from sparsecap_jax.captioner import Captioner
from sparsecap_jax.commands.convert import import_reference
from sparsecap_jax.commands.evaluate import evaluate_run
from sparsecap_jax.data.datasets import Dataset
from sparsecap_jax.data.records import Record
from sparsecap_jax.data.stores import NpyFolderStore, load_image_sizes, open_store
from sparsecap_jax.data.stores.convert import convert

ZIP = "reference/checkpoint/TINY3_UpDownLSTM__supermask__0.975__wg_120.0.zip"
IDS = [391895, 522418, 184613, 57870, 384029]


@pytest.fixture(scope="module")
def sizes(shared):
    return load_image_sizes(shared / "data/coco_five")


@pytest.fixture(scope="module")
def photos(shared, sizes):
    root = shared / "reference/coco5/bu"
    photos = {}
    for image_id in IDS:
        boxes = np.load(root / f"cocobu_box_relative/{image_id}.npy")
        pixels = (boxes * np.tile(sizes[image_id], 2)).astype(np.float32)
        features = np.load(root / f"cocobu_att/{image_id}.npy")
        photos[image_id] = store_files.Photo(features, pixels, sizes[image_id])
    return photos


@pytest.fixture(scope="module")
def run_dir(shared, tmp_path_factory):
    directory = tmp_path_factory.mktemp("stores") / "run"
    import_reference(shared / ZIP, directory, lambda _: None)
    return directory


@pytest.fixture(scope="module")
def captioner(run_dir):
    return Captioner.load(run_dir)


@pytest.fixture(scope="module")
def published(shared):
    """Greedy captions of the reference."""
    figures = json.loads((shared / "reference/checkpoint/tiny3_xe_captions.json").read_text())
    texts = [texts[0] for texts in figures["decodes"]["greedy"]]
    return dict(zip(figures["image_ids"], texts, strict=True))


@pytest.mark.parametrize("name", store_files.LAYOUTS)
def test_every_store_gives_the_same_captions(
    shared, photos, sizes, captioner, published, tmp_path, name
):
    reference = NpyFolderStore(shared / "reference/coco5", need_boxes=True)
    path = store_files.LAYOUTS[name](tmp_path / "files", photos)
    store = open_store(path, need_boxes=True, sizes=sizes)
    convert(store, tmp_path / "converted", report=lambda _: None)
    captions = {}
    for key, source in (("", store), ("converted", open_store(tmp_path / "converted", 2048, True))):
        for image_id in IDS:
            ours, expected = source[image_id], reference[image_id]
            np.testing.assert_array_equal(ours.features, expected.features)
            # float32 pixels divided again: not to the last bit those of the float64 file
            np.testing.assert_allclose(ours.boxes, expected.boxes, rtol=0, atol=2e-7)
            np.testing.assert_allclose(ours.fc, expected.fc, rtol=1e-5, atol=1e-6)
        found = captioner.caption_store(source, IDS, batch_size=5, beam_size=1)
        captions[key] = {image_id: best.text for image_id, (best,) in found}
    assert captions[""] == captions["converted"] == published


def test_a_split_without_captions_is_captioned_and_not_scored(shared, run_dir, published, tmp_path):
    """COCO's test2014."""
    store = NpyFolderStore(shared / "reference/coco5")
    dataset = Dataset({"test": [Record(image_id) for image_id in IDS]}, store, tmp_path)
    options = {"search": "greedy", "output": tmp_path / "out", "report": lambda _: None}
    result = evaluate_run(run_dir, split="test", dataset=dataset, **options)
    assert result["images"] == 5
    assert "CIDEr" not in result
    entries = json.loads((tmp_path / "out/captions.json").read_text())
    assert {entry["image_id"]: entry["caption"] for entry in entries} == published
    assert not (tmp_path / "out/scores.json").exists()
