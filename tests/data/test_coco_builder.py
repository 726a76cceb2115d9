import json
import subprocess
import sys

import numpy as np
import pytest
import store_files
import tensorflow_datasets as tfds
from prepare_runs import run_prepare

from sparsecap_jax.data.coco_builder import CaptionConfig, CaptionFeatures
from sparsecap_jax.data.datasets import load_dataset, load_splits
from sparsecap_jax.data.pipeline import make_eval_batches
from sparsecap_jax.data.stores import find_format, open_store
from sparsecap_jax.errors import ConfigError, DataError
from sparsecap_jax.runs.config import default_config

WIDTH = 6
COUNTS = {42: 3, 7: 2, 391895: 5}
SPLITS = {42: "train", 7: "val", 391895: "train"}


@pytest.fixture(scope="module")
def photos():
    return store_files.random_photos(COUNTS, WIDTH)


@pytest.fixture(scope="module")
def manual(photos, tmp_path_factory):
    root = tmp_path_factory.mktemp("manual")
    store_files.write_lxmert(root / "features", photos)
    images = [
        {
            "filename": f"COCO_val2014_{image_id:012d}.jpg",
            "filepath": "val2014",
            "cocoid": image_id,
            "split": split,
            "sentences": [{"tokens": ["a", "bär"], "raw": f"A Bär {image_id}."}] * 2,
        }
        for image_id, split in SPLITS.items()
    ]
    (root / "dataset_coco.json").write_text(json.dumps({"images": images}))
    return root


@pytest.fixture(scope="module")
def prepared(manual, tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("tfds")
    arguments = [f"--manual_dir={manual}", f"--data_dir={data_dir}", "--boxes"]
    arguments += [f"--feature_size={WIDTH}", "--features=features"]
    run_prepare("tfds", *arguments)
    return data_dir / "caption_features/coco/1.0.0"


def test_data_source(prepared, photos):
    builder = tfds.builder_from_directory(str(prepared))
    assert {name: s.num_examples for name, s in builder.info.splits.items()} == {
        "train": 2,
        "val": 1,
    }
    source = builder.as_data_source(split="train")
    assert [example["image_id"] for example in source] == [b"42", b"391895"]
    example = source[1]
    np.testing.assert_array_equal(example["features"], photos[391895].features)
    np.testing.assert_array_equal(example["boxes"], photos[391895].boxes)
    np.testing.assert_array_equal(example["fc"], photos[391895].fc)
    assert list(example["captions"]) == ["a bär".encode()] * 2
    assert list(example["raw"]) == ["A Bär 391895.".encode()] * 2


def test_it_is_a_store_and_a_split(prepared, photos, manual):
    assert find_format(prepared) == "tfds"
    store = open_store(prepared, WIDTH, True)
    assert store.image_ids() == [7, 42, 391895]
    assert {i: store.num_regions(i) for i in COUNTS} == COUNTS
    for image_id, photo in photos.items():
        np.testing.assert_array_equal(store[image_id].features, photo.features)
        np.testing.assert_array_equal(store[image_id].boxes, photo.boxes)
        np.testing.assert_array_equal(store[image_id].fc, photo.fc)
    assert load_splits("tfds", prepared) == load_splits("karpathy", manual)


def test_it_feeds_the_same_pipeline(prepared, photos, manual):
    def batch(name, directory, features=""):
        config = default_config().data.unlock()
        config.update(name=name, dir=str(directory), features=features, feature_size=WIDTH)
        dataset = load_dataset(config, need_boxes=True)
        (found,) = make_eval_batches(dataset.splits["train"], dataset.store, batch_size=2)
        return found.regions

    ours = batch("tfds", prepared)
    theirs = batch("karpathy", manual, str(manual / "features"))
    for name in ("features", "boxes", "fc", "mask"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def test_only_array_record_is_possible(tmp_path):
    with pytest.raises(ConfigError, match="'tfrecord'; expected 'array_record': the others need"):
        CaptionFeatures(data_dir=str(tmp_path), file_format="tfrecord")


def test_missing_features_are_told_before_anything_is_written(manual, tmp_path):
    (tmp_path / "m").mkdir()
    content = json.loads((manual / "dataset_coco.json").read_text())
    content["images"].append(content["images"][0] | {"cocoid": 5})
    (tmp_path / "m/dataset_coco.json").write_text(json.dumps(content))
    config = CaptionConfig(feature_size=WIDTH, features=str(manual / "features"))
    builder = CaptionFeatures(data_dir=str(tmp_path / "d"), config=config)
    download = tfds.download.DownloadConfig(manual_dir=str(tmp_path / "m"))
    with pytest.raises(DataError, match="no row for 1 of 4 images: 5"):
        builder.download_and_prepare(download_config=download)
    assert not list((tmp_path / "d").rglob("*.array_record*"))


def test_a_manual_directory_that_is_not_there(tmp_path):
    arguments = [f"--manual_dir={tmp_path / 'm'}", f"--data_dir={tmp_path / 'd'}"]
    with pytest.raises(DataError, match="m: no such file or folder; expected a folder of captions"):
        run_prepare("tfds", *arguments)


def test_folders_that_are_not_ours(prepared, tmp_path):
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(DataError, match=r"metadata\.json is missing; expected what tfds prepared"):
        open_store(tmp_path, WIDTH)
    (tmp_path / "metadata.json").write_bytes((prepared / "metadata.json").read_bytes())
    with pytest.raises(DataError, match="tfds cannot open"):
        open_store(tmp_path, WIDTH).image_ids()
    with pytest.raises(DataError, match=r"train\[0\]: features: expected shape \[R, 5\]"):
        open_store(prepared, 5)[42]


def test_tensorflow_is_not_imported(prepared):
    code = (
        "import sys; from sparsecap_jax.data.stores import open_store; "
        f"open_store({str(prepared)!r}, {WIDTH})[42]; print('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
