"""Imagined features: the regression against refitting, the dataset against its sources."""

import json
import pickle

import numpy as np
import pytest

from sparsecap_jax.data import imagined
from sparsecap_jax.data.datasets import load_dataset, load_splits
from sparsecap_jax.data.imagined_dataset import prepare
from sparsecap_jax.errors import ConfigError, DataError
from sparsecap_jax.runs.config import default_config

WORDS = ("dog", "cat", "ball", "tree", "boat")
BOXES = np.array([[0, 0, 1, 1], [0, 0, 0.5, 1]], np.float32)


def some_photos(count=14, width=3, seed=0):
    """Captions of random words, and features that follow from them but for some noise."""
    rng = np.random.default_rng(seed)
    chosen = [sorted(rng.permutation(5)[:2].tolist()) for _ in range(count)]
    effects = rng.normal(size=(5, 2, width)) * 2
    noise = rng.normal(size=(count, 2, width))
    features = np.stack([effects[pair].sum(axis=0) for pair in chosen]) + noise * 0.1 + 5
    captions = [[f"A {WORDS[i]} and a {WORDS[j]}.", f"The {WORDS[i]}!"] for i, j in chosen]
    return features.astype(np.float32), captions


def bags_of(captions, words):
    """The bags of words, one photo and word at a time."""
    bags = np.zeros((len(captions), len(words)))
    for row, texts in enumerate(captions):
        for column, (word, weight) in enumerate(words.items()):
            share = np.mean([word in text.lower().strip(".!").split() for text in texts])
            bags[row, column] = weight * np.sqrt(share)
    return bags


def test_residuals_are_those_of_refitting_without_each_photo():
    features, captions = some_photos()
    fitted, figures = imagined.fit(
        features, BOXES, captions, [0] * 14, min_photos=2, penalties=(0.5,)
    )
    targets = features.reshape(14, -1).astype(np.float64)
    targets -= targets.mean(axis=0)
    bags = bags_of(captions, fitted.words)
    bags -= bags.mean(axis=0)
    for left_out in range(14):
        kept = np.arange(14) != left_out
        gram = bags[kept].T @ bags[kept] + 0.5 * np.eye(bags.shape[1])
        slopes = np.linalg.solve(gram, bags[kept].T @ targets[kept])
        expected = targets[left_out] - bags[left_out] @ slopes
        np.testing.assert_allclose(fitted.residuals[left_out].ravel(), expected, atol=5e-3)
    gram = bags.T @ bags + 0.5 * np.eye(bags.shape[1])
    slopes = np.linalg.solve(gram, bags.T @ targets)
    np.testing.assert_allclose(fitted.slopes.reshape(slopes.shape), slopes, atol=1e-5)
    assert figures["explained"] > 0.5


def test_the_best_penalty_is_taken():
    features, captions = some_photos()
    _, figures = imagined.fit(
        features, BOXES, captions, [0] * 14, min_photos=2, penalties=(1e4, 0.1, 1e6)
    )
    assert figures["penalty"] == 0.1


def test_imagining_adds_up():
    fitted = imagined.Imagination(
        {"dog": 2.0, "cat": 1.0},
        np.array([[[1.0, 0], [0, 1]], [[10, 0], [0, -50]]], np.float32),
        np.full((2, 2), 3, np.float32),
        np.array([[[0, 0], [0, 0]], [[0.5, 0], [0, 0]]], np.float16),
        BOXES,
    )
    regions = fitted.imagine(["a dog", "The dog, a cat", "dog", "dog"], 3)
    # dog in all captions: 2; cat in a quarter: 1 * 0.5; the second residual; nothing below 0.
    np.testing.assert_allclose(regions.features, [[3 + 2 + 5 + 0.5, 3], [3, 0]])
    np.testing.assert_allclose(regions.fc, regions.features.mean(axis=0))


def test_other_collections_are_centred_by_themselves():
    features, captions = some_photos()
    shifted = np.concatenate([features, features + 100])
    groups = [0] * 14 + [1] * 14
    both, _ = imagined.fit(shifted, BOXES, captions * 2, groups, min_photos=2, penalties=(1.0,))
    alone, _ = imagined.fit(
        np.concatenate([features] * 2), BOXES, captions * 2, groups, min_photos=2, penalties=(1.0,)
    )
    np.testing.assert_allclose(both.slopes, alone.slopes, atol=1e-4)
    np.testing.assert_allclose(both.mean, features.mean(axis=0), atol=1e-5)


@pytest.fixture
def sources(tmp_path):
    features, captions = some_photos(20)
    for name, start, stop in (("main", 0, 14), ("more", 14, 20)):
        images = []
        for number in range(start, stop):
            split = "test" if number == 0 else "dev" if number == 1 else "train"
            entry = {"filename": f"p{number}.jpg", "split": split, "captions": captions[number]}
            images.append(entry)
            arrays = (features[number], BOXES, features[number].mean(axis=0))
            for kind, array in zip(("att", "box_relative", "fc"), arrays, strict=True):
                folder = tmp_path / f"{name}_features" / f"cocobu_{kind}"
                folder.mkdir(parents=True, exist_ok=True)
                np.save(folder / f"p{number}.npy", array.astype(np.float32))
        (tmp_path / name).mkdir()
        (tmp_path / name / "captions.json").write_text(json.dumps({"images": images}))
    text = [{"filename": f"p{n}.jpg", "split": "train", "captions": [f"text {n}"]} for n in (0, 99)]
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "captions.json").write_text(json.dumps({"images": text}))
    return tmp_path


def open_dataset(folder, **changes):
    config = default_config().data.unlock()
    config.update(name="imagined", dir=str(folder), feature_size=3, **changes)
    return load_dataset(config, need_boxes=True)


def test_dataset_of_photos_and_text(sources):
    photos = [(sources / name, sources / f"{name}_features") for name in ("main", "more")]
    prepare(photos, [("photos", sources / "text")], sources / "out", 3, report=lambda line: None)
    dataset = open_dataset(sources / "out")
    ids = [record.image_id for record in dataset.splits["train"]]
    # p0 is a test photo: its text is left out.
    assert ids == [*(f"p{n}" for n in range(2, 20)), "text/p99/0"]
    assert [r.image_id for r in dataset.splits["test"]] == ["p0"]
    assert [r.image_id for r in dataset.splits["val"]] == ["p1"]
    dataset.store.check(ids)
    stored = np.load(sources / "main_features" / "cocobu_att" / "p3.npy")
    np.testing.assert_array_equal(dataset.store["p3"].features, stored)
    again = open_dataset(sources / "out").store["text/p99/0"]
    np.testing.assert_array_equal(dataset.store["text/p99/0"].features, again.features)
    assert again.features.shape == (2, 3) and dataset.store.num_regions("text/p99/0") == 2

    mixed = open_dataset(sources / "out", mixture="main=2,text=3")
    ids = [record.image_id for record in mixed.splits["train"]]
    assert len(ids) == 2 * 12 + 3 and ids.count("p5") == 2 and "p15" not in ids
    first, second = (mixed.store[f"text/p99/{copy}"].features for copy in (0, 1))
    assert np.abs(first - second).max() > 1e-3
    with pytest.raises(ConfigError, match=r"config\.data\.mixture: found 'men=2'"):
        open_dataset(sources / "out", mixture="men=2")


def test_photos_of_several_folders_without_text(sources):
    photos = [(sources / name, sources / f"{name}_features") for name in ("main", "more")]
    prepare(photos, [], sources / "out", 3, report=lambda line: None)
    assert not (sources / "out" / imagined.IMAGINED).exists()
    dataset = open_dataset(sources / "out", mixture="main=1,more=2")
    ids = [record.image_id for record in dataset.splits["train"]]
    assert ids == [f"p{n}" for n in [*range(2, 14), *range(14, 20), *range(14, 20)]]
    assert [r.image_id for name in ("val", "test") for r in dataset.splits[name]] == ["p1", "p0"]
    stored = np.load(sources / "more_features" / "cocobu_att" / "p15.npy")
    np.testing.assert_array_equal(dataset.store["p15"].features, stored)


def test_missing_features_are_named(sources):
    (sources / "main_features" / "cocobu_fc" / "p4.npy").unlink()
    with pytest.raises(DataError, match=r"p4\.npy: no such file"):
        prepare([(sources / "main", sources / "main_features")], [], sources / "out", 3)


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_broken_files_of_imagined_features(tmp_path, content):
    if content is not None:
        (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npz: "):
        imagined.load(tmp_path / "a.npz")


def test_imagined_is_an_ordinary_dataset(sources):
    """Splits, bad entries, the cache and its shares work as for every other dataset."""
    photos = [(sources / "main", sources / "main_features")]
    prepare(photos, [("photos", sources / "text")], sources / "out", 3, report=lambda line: None)
    splits = load_splits("imagined", sources / "out")
    assert [len(records) for records in splits.values()] == [13, 1, 1]
    assert splits == open_dataset(sources / "out").splits
    path = sources / "out" / imagined.PHOTOS
    content = path.read_text()
    twice = json.loads(content)
    twice["main"]["test"].append(twice["main"]["train"][0])
    path.write_text(json.dumps(twice))
    expected = r"main\.test\[1\]: image id 'p2' is that of main\.train\[0\] too"
    with pytest.raises(DataError, match=expected):
        load_splits("imagined", sources / "out")
    path.write_text(content)
    (sources / "out/bu/cocobu_att/p5.npy").unlink()
    dataset = open_dataset(sources / "out", skip_bad=True, cache_dtype="float16")
    ids = [record.image_id for record in dataset.splits["train"]]
    assert ids == [*(f"p{n}" for n in range(2, 14) if n != 5), "text/p99/0"]
    shared = pickle.loads(pickle.dumps(dataset.store.share(2)))
    stored = np.load(sources / "main_features/cocobu_att/p3.npy")
    for store in (dataset.store, shared):
        rounded = stored.astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(store["p3"].features, rounded)
        imagined_once = dataset.store["text/p99/0"].features
        np.testing.assert_array_equal(store["text/p99/0"].features, imagined_once)
    with pytest.raises(ConfigError, match=r"config\.data\.dir is empty"):
        open_dataset("")
