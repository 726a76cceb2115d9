"""What all datasets have in common: texts, bad entries, advice, features, plugins."""

import dataclasses
import json
import logging

import numpy as np
import pytest
from dataset_files import dump, ids_of, karpathy_image, photo

from sparsecap_jax.data.datasets import (
    DATASETS,
    Contents,
    load_dataset,
    load_splits,
    stated_licence,
)
from sparsecap_jax.data.records import check_path
from sparsecap_jax.errors import ConfigError, DataError
from sparsecap_jax.runs.config import default_config
from sparsecap_jax.settings import use_plugin
from sparsecap_jax.text import words


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A man's T-shirt, size XL.", "a mans t shirt size xl"),
        ("There's a  dog\nand\ta cat!", "theres a dog and a cat"),
        ("Don’t_stop: café №5", "dont stop café 5"),
        ("...", ""),
    ],
)
def test_words(caption, expected):
    assert " ".join(words(caption)) == expected


def test_words_are_the_tokens_of_karpathys_split(shared):
    data = json.loads((shared / "reference/coco5/dataset_coco_testing.json").read_text())
    sentences = [s for image in data["images"] for s in image["sentences"]]
    assert len(sentences) == 25
    assert [words(s["raw"]) for s in sentences] == [s["tokens"] for s in sentences]


@pytest.mark.parametrize("path", ["a" * 256, "b/" + "ä" * 128, "../a", "/a", "a\0b"])
def test_paths_that_no_file_can_have(path):
    with pytest.raises(DataError, match="file: expected a path below the image folder"):
        check_path(path, "file")
    assert check_path("b/" + "a" * 255, "file") == "b/" + "a" * 255


def test_bad_entries_are_skipped_and_counted_on_request(tmp_path, caplog):
    images = [karpathy_image(i, "train") for i in range(8)]
    for number in range(6):
        images[number]["sentences"] = []
    images.append(karpathy_image(7, "val"))  # twice
    images.append(karpathy_image(8, "val"))
    dump(tmp_path / "dataset_coco.json", {"images": images})
    with caplog.at_level(logging.WARNING):
        splits = load_splits("karpathy", tmp_path, skip_bad=True)
    assert ids_of(splits) == {"train": [6, 7], "val": [8], "test": []}
    assert "skipped 7 bad images" in caplog.text
    assert caplog.text.count("skipped: ") == 5  # the first ones in full
    with pytest.raises(DataError, match=r"images\[0\]: no captions"):
        load_splits("karpathy", tmp_path)


BAD_CAPTIONS = {  # one image a folder, of which a caption is bad, and another that is no image
    "coco_json": {
        "captions_test.json": {
            "images": [{"id": 1}, {"id": 1.5}],
            "annotations": [{"image_id": 1, "caption": c} for c in ("A dog.", None)],
        }
    },
    "karpathy": {
        "dataset_x.json": {
            "images": [
                karpathy_image(1, "test", sentences=[{"tokens": ["a", "dog"]}, {"tokens": None}]),
                5,
            ]
        }
    },
    "photos": {
        "captions.json": {
            "images": [
                {"filename": "1.jpg", "split": "test", "captions": ["A dog.", None]},
                {"filename": "2.jpg"},
            ]
        }
    },
    "flickr8k": {
        "Flickr8k.token.txt": b"1.jpg#0\tA dog.\n1.jpg#1\tcaf\xe9\n2.jpg A dog.\n3.jpg#0\tx\n",
        "trainImages.txt": b"3.jpg",
        "devImages.txt": b"4.jpg",
        "testImages.txt": b"1.jpg",
    },
    "instapic": {
        "insta-caption-train.json": {"me": [], "you": {"1": {"caption": None}}},
        "insta-caption-test1.json": {"you": {"1": {"caption": "A dog."}}},
    },
}


@pytest.mark.parametrize("name", BAD_CAPTIONS)
def test_bad_captions_leave_the_rest_of_an_image(tmp_path, caplog, name):
    """As in cases/skip_bad_annotations, in every format."""
    for file, content in BAD_CAPTIONS[name].items():
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        (tmp_path / file).write_bytes(text)
    with caplog.at_level(logging.WARNING):
        (record,) = load_splits(name, tmp_path, skip_bad=True)["test"]
    assert record.captions == ("a dog",)
    assert record.image_id == ("you_@_1" if name == "instapic" else 1)
    # Flickr8k: a line that is not UTF-8, one without a number, and the picture 4 of a list
    faults = 3 if name == "flickr8k" else 2
    assert caplog.text.count("skipped: ") == faults
    assert f"skipped {faults} bad images or captions" in caplog.text
    with pytest.raises(DataError):
        load_splits(name, tmp_path)


def test_captions_of_400_words_and_other_scripts_are_kept(tmp_path):
    long = " ".join(["word"] * 400)
    dump(tmp_path / "captions.json", {"images": [photo(captions=[long, "Ein Bär 熊 🐻"])]})
    (record,) = load_splits("photos", tmp_path)["train"]
    assert record.captions == (long, "ein bär 熊")
    assert record.raw[1] == "Ein Bär 熊 🐻"


def test_unknown_dataset(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.name is 'flicker'; did you mean 'flickr8k'"):
        load_splits("flicker", tmp_path)
    for name in sorted(DATASETS):
        missing = "absent.*: no such file or folder; expected (the|a) folder"
        with pytest.raises(DataError, match=missing):
            load_splits(name, tmp_path / "absent")
        with pytest.raises(DataError):
            load_splits(name, tmp_path)


def section(directory, **changes):
    config = default_config().data.unlock()
    config.update({"name": "karpathy", "dir": str(directory), "feature_size": 4, **changes})
    return config


def test_a_missing_dataset_and_one_of_another_name_come_with_advice(coco_folder, tmp_path):
    other = r"absent: no such .*; --config\.data\.dir=DIR and --config\.data\.name=NAME name anot"
    with pytest.raises(DataError, match=other):
        load_dataset(section(tmp_path / "absent"))
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match=r"; --config\.data\.name=NAME reads another kind: photos"):
        load_dataset(section(tmp_path / "photos", name="imagined"))
    (tmp_path / "photos/captions.json").write_text("{}")
    for name in ("karpathy", "imagined", "tfds"):
        with pytest.raises(DataError, match=r"looks like photos: try --config\.data\.name=photos$"):
            load_dataset(section(tmp_path / "photos", name=name))
    with pytest.raises(DataError, match=r"key 'images' is missing, found keys \[\]$"):
        load_dataset(section(tmp_path / "photos", name="photos"))


def test_the_first_bad_entry_names_the_option_that_skips_it(tmp_path):
    images = [{"filename": "1.jpg", "split": "train", "captions": []}]
    (tmp_path / "captions.json").write_text(json.dumps({"images": images}))
    advice = r"; --config\.data\.skip_bad leaves out what is bad$"
    with pytest.raises(DataError, match=rf"no captions, expected at least one{advice}"):
        load_dataset(section(tmp_path, name="photos"))
    with pytest.raises(DataError, match=r"no captions, expected at least one$"):
        load_splits("photos", tmp_path)


def test_the_licence_of_a_dataset_is_that_of_config_or_description(tmp_path):
    assert stated_licence(section(tmp_path, name="photos")) == ""
    (tmp_path / "captions.json").write_text(json.dumps({"images": [], "license": "CC0"}))
    assert stated_licence(section(tmp_path, name="photos")) == "CC0"
    assert stated_licence(section(tmp_path, name="photos", licence="mine")) == "mine"
    (tmp_path / "dataset_x.json").write_text(json.dumps({"licence": "CC BY 4.0", "license": "no"}))
    assert stated_licence(section(tmp_path, name="karpathy")) == "CC BY 4.0"
    (tmp_path / "dataset_x.json").write_text("[")
    with pytest.raises(DataError, match=r"dataset_x\.json: broken JSON"):
        stated_licence(section(tmp_path, name="karpathy"))


def test_features_for_half_of_the_images(coco_folder, caplog):
    features = coco_folder / "elsewhere/cocobu_att"
    features.mkdir(parents=True)
    for image_id in (1, 4):
        np.save(features / f"{image_id}.npy", np.full((2, 4), image_id, np.float32))
    options = {"features": str(features.parent)}
    dataset = load_dataset(section(coco_folder, **options))
    everything = [record.image_id for split in dataset.splits.values() for record in split]
    with pytest.raises(DataError, match="no file for 3 of 5 images: 2, 3, 5"):
        dataset.store.check(everything)
    with caplog.at_level(logging.WARNING):
        dataset = load_dataset(section(coco_folder, skip_bad=True, **options))
    assert ids_of(dataset.splits) == {"train": [1], "val": [], "test": [4]}
    assert "1 of 2 train images have no features and are left out" in caplog.text
    dataset.store.check([1, 4])
    assert dataset.store[4].features.tolist() == [[4.0] * 4] * 2


def test_options_of_the_cache_reach_it(coco_folder):
    features = coco_folder / "bu/cocobu_att"
    features.mkdir(parents=True)
    np.save(features / "1.npy", np.full((2, 4), 1 / 3, np.float32))
    store = load_dataset(section(coco_folder, cache_dtype="float16", cache_gb=0.0)).store
    assert store[1].features[0, 0] == np.float32(np.float16(1 / 3))
    assert len(store) == 0
    with pytest.raises(ConfigError, match="cache_dtype: expected float32 or float16"):
        load_dataset(section(coco_folder, cache_dtype="int8"))
    with pytest.raises(ConfigError, match=r"data\.features_format is 'tvs'; did you mean 'tsv'"):
        load_dataset(section(coco_folder, features_format="tvs"))


def photo_set(source):
    """A dataset of one's own: the photos' records, each image's features doubled."""

    class Doubled:
        def __init__(self, store):
            self.feature_size, self._store = store.feature_size, store
            self.num_regions, self.check = store.num_regions, store.check

        def __getitem__(self, image_id):
            regions = self._store[image_id]
            return dataclasses.replace(regions, features=2 * regions.features)

    splits = DATASETS["photos"](source).splits
    return Contents(splits, source.directory, Doubled)


def test_datasets_of_ones_own(tmp_path, monkeypatch):
    dump(tmp_path / "captions.json", {"images": [photo()]})
    features = tmp_path / "bu/cocobu_att"
    features.mkdir(parents=True)
    np.save(features / "a.npy", np.ones((2, 4), np.float32))
    name = f"{__name__}:photo_set"
    with pytest.raises(ConfigError, match=f"--plugin={__name__}"):
        load_dataset(section(tmp_path, name=name))
    use_plugin(__name__)
    monkeypatch.setattr(DATASETS, "_entries", dict(DATASETS))  # restores it afterwards
    DATASETS.register("test_photo_set", photo_set)
    for known in (name, "test_photo_set"):
        dataset = load_dataset(section(tmp_path, name=known))
        assert dataset.store["a"].features.tolist() == [[2.0] * 4] * 2
        assert dataset.splits == load_splits("photos", tmp_path)


def test_paths_that_are_no_text_are_refused():
    with pytest.raises(DataError, match="here: not valid Unicode text"):
        check_path("\ud800.jpg", "here")
