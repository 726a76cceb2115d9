import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from sparsecap_jax.data import toy_regions
from sparsecap_jax.data.karpathy import load_karpathy
from sparsecap_jax.data.stores import NpyFolderStore
from sparsecap_jax.data.toy_drawing import RGB, draw_scene
from sparsecap_jax.data.toy_regions import CHANNELS, SPATIAL, list_regions, scene_features
from sparsecap_jax.data.toy_scenes import make_toy_scenes, measure
from sparsecap_jax.data.toy_world import Draws, Scene, sample_scene
from sparsecap_jax.errors import ConfigError

SIZES = (6, 2, 2)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_toy_scenes(tmp_path_factory.mktemp("toy") / "scenes", SIZES, seed=0)


def philox(key, words):
    """Philox4x64-10 (Salmon et al., 2011) in whole numbers; NumPy's counter starts at 1."""
    low, out = 2**64 - 1, []
    for block in range(1, -(-words // 4) + 1):
        counter, (k0, k1) = [block, 0, 0, 0], key
        for _ in range(10):
            a = 0xD2E7470EE14C6C93 * counter[0]
            b = 0xCA5A826395121157 * counter[2]
            counter = [b >> 64 ^ counter[1] ^ k0, b & low, a >> 64 ^ counter[3] ^ k1, a & low]
            k0, k1 = (k0 + 0x9E3779B97F4A7C15) & low, (k1 + 0xBB67AE8584CAA73B) & low
        out += counter
    return out[:words]


def triangular(words, size):
    """Sums of two bytes less 255 from raw words, low byte first: byte i and byte i + size."""
    raw = [word >> 8 * k & 255 for word in words for k in range(8)]
    return [raw[i] + raw[size + i] - 255 for i in range(size)]


# --- determinism


def test_draws_follow_philox():
    words = philox((5, 1 << 32 | 9), 100)
    draws = Draws(5, 9, purpose=1)
    assert [draws.below(1000) for _ in range(100)] == [(w >> 32) * 1000 >> 32 for w in words]
    noise = Draws(5, 9, purpose=1).triangular(3, 7)
    assert noise.dtype == np.int32
    assert noise.reshape(-1).tolist() == triangular(philox((5, 1 << 32 | 9), 6), 21)


def test_weights_of_pick():
    draws = Draws(1, 2)
    counts = np.bincount([draws.pick(range(3), (1, 0, 3)) for _ in range(4000)], minlength=3)
    assert counts[1] == 0
    assert 900 < counts[0] < 1100  # 1000 expected, standard deviation 27


def test_features_follow_their_definition():
    """relu(attributes @ projection + noise) again in plain Python, from the same regions."""
    scene = sample_scene(0, 3)
    features, boxes = scene_features(scene, Draws(0, 3, purpose=2))
    draws = Draws(0, 3, purpose=2)
    regions = list_regions(scene, draws)
    channels = len(CHANNELS)
    wide = Draws(2048, 0, purpose=3).triangular(channels, 2048).tolist()
    attribute_noise = draws.triangular(len(regions), channels).tolist()
    feature_noise = draws.triangular(len(regions), 2048).tolist()
    assert features.dtype == np.float16
    assert features.shape == (len(regions), 2048)
    for row in range(len(regions)):
        box, attributes = regions[row]
        noisy = [
            int(a) + n // 8 for a, n in zip(attributes.values, attribute_noise[row], strict=True)
        ]
        for column in (0, 777, 2047):
            weights = [(line[column] + 36) // 73 for line in wide]
            total = sum(a * w for a, w in zip(noisy, weights, strict=True))
            total += feature_noise[row][column] - 96
            assert float(features[row, column]) == min(max(total, 0), 2047) / 512
        scale = (192, 144, 192, 144)
        assert boxes[row].tolist() == [np.float32(c / s) for c, s in zip(box, scale, strict=True)]


def test_checksum_is_known(dataset):
    """The whole dataset is what it was when these figures were written down."""
    manifest = json.loads((dataset / "manifest.json").read_text())
    assert manifest["checksum"] == KNOWN_CHECKSUM
    digest = hashlib.sha256()
    for image_id in range(1, 11):
        for folder in ("att", "fc", "box_relative"):
            digest.update(np.load(dataset / f"bu/cocobu_{folder}/{image_id}.npy").tobytes())
    digest.update((dataset / "dataset_toy.json").read_bytes())
    assert manifest["checksum"] == digest.hexdigest()


KNOWN_CHECKSUM = "87a0a5402c9a179a7be5b1bf29cb9c1e642f6b1f82f1d67f3c00b5692784abef"


def test_seed_matters(dataset, tmp_path):
    other = make_toy_scenes(tmp_path / "other", (2, 0, 0), seed=1)
    assert json.loads((other / "manifest.json").read_text())["checksum"] != KNOWN_CHECKSUM
    same = make_toy_scenes(tmp_path / "same", (2, 0, 0), seed=0)
    for name in ("att/1.npy", "fc/2.npy", "box_relative/2.npy"):
        path = f"bu/cocobu_{name}"
        assert (same / path).read_bytes() == (dataset / path).read_bytes()
        assert (other / path).read_bytes() != (dataset / path).read_bytes()


# --- layout


def test_reads_like_coco(dataset):
    splits = load_karpathy(dataset / "dataset_toy.json")
    assert {name: len(records) for name, records in splits.items()} == {
        **{"train": 6, "val": 2, "test": 2}
    }
    records = [record for part in splits.values() for record in part]
    assert [record.image_id for record in records] == list(range(1, 11))
    assert all(len(record.captions) == 5 for record in records)
    assert all(record.captions == record.raw for record in records)
    store = NpyFolderStore(dataset, need_boxes=True)
    store.check(record.image_id for record in records)
    for record in records:
        regions = store[record.image_id]
        assert 10 <= len(regions.features) <= 20
        assert regions.features.min() == 0
        np.testing.assert_array_equal(
            regions.fc, np.mean(regions.features, axis=0, dtype=np.float64).astype(np.float32)
        )
        with Image.open(dataset / record.folder / record.filename) as picture:
            assert picture.size == (192, 144)
            assert picture.mode == "RGB"


def test_split_json_has_the_keys_of_coco(dataset, shared):
    ours = json.loads((dataset / "dataset_toy.json").read_text())
    coco = shared / "reference/coco5/dataset_coco_testing.json"
    theirs = json.loads(coco.read_text())
    assert set(ours) == set(theirs)
    assert set(ours["images"][0]) == set(theirs["images"][0])
    assert set(ours["images"][0]["sentences"][0]) == set(theirs["images"][0]["sentences"][0])
    sentences = [s for image in ours["images"] for s in image["sentences"]]
    assert [s["sentid"] for s in sentences] == list(range(50))
    assert [i for image in ours["images"] for i in image["sentids"]] == list(range(50))


# --- regions and features


def test_every_object_and_group_has_its_region():
    for number in range(30):
        scene = sample_scene(3, number)
        found = [box for box, _ in list_regions(scene, Draws(3, number, purpose=2))]
        assert (0, 0, 192, 144) in found
        for group in scene.groups:
            assert set(group.boxes) <= set(found)
            assert group.box in found
        assert all(0 <= x1 < x2 <= 192 and 0 <= y1 < y2 <= 144 for x1, y1, x2, y2 in found)


def test_order_of_regions_tells_nothing():
    places = []
    for number in range(100):
        scene = sample_scene(4, number)
        boxes = [box for box, _ in list_regions(scene, Draws(4, number, purpose=2))]
        places.append(boxes.index((0, 0, 192, 144)) / (len(boxes) - 1))
    assert abs(np.mean(places) - 0.5) < 0.1  # standard error 0.025
    assert np.mean(np.array(places) < 0.25) > 0.15


def overlap(a, b):
    """Intersection over union of two boxes."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


@pytest.fixture(scope="module")
def regions():
    """Many regions, each with (group, number of objects) where it holds just that, else None.

    Inputs of linear probes: how far the features go along each attribute's line of the projection.
    """
    rows, shown = [], []
    for number in range(240):
        scene = sample_scene(5, number)
        features, relative = scene_features(scene, Draws(5, number, purpose=2))
        exact = {box: (group, 1) for group in scene.groups for box in group.boxes}
        exact |= {group.box: (group, group.count) for group in scene.groups}
        found = [tuple(map(round, box)) for box in (relative * [192, 144, 192, 144]).tolist()]
        for box, row in zip(found, features.astype(np.float32), strict=True):
            again = any(overlap(box, group.box) > 0.6 for group in scene.groups)
            if box in exact or not again:  # groups found again are neither this nor that
                rows.append(row)
                shown.append(exact.get(box))
    projection = (Draws(2048, 0, purpose=3).triangular(len(CHANNELS), 2048) + 36) // 73
    inputs = (np.stack(rows) - np.mean(rows, axis=0)) @ projection.T.astype(np.float32)
    inputs /= inputs.std(axis=0)
    return np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1), shown


def probe(inputs, truth):
    """Accuracy on the last third of a linear classifier fitted to the first two."""
    values, cut = np.unique(truth), len(truth) * 2 // 3
    targets = (truth[:cut, None] == values).astype(np.float64)
    weights = np.linalg.lstsq(inputs[:cut], targets, rcond=None)[0]
    return np.mean(values[(inputs[cut:] @ weights).argmax(axis=1)] == truth[cut:])


@pytest.mark.parametrize("block", ["shape", "colour", "pattern", "size", "count"])
def test_attributes_can_be_read_from_features(regions, block):
    inputs, shown = regions
    kept = [k for k, what in enumerate(shown) if what is not None]
    things = [shown[k] for k in kept]
    truth = [count if block == "count" else getattr(group, block) for group, count in things]
    assert probe(inputs[kept], np.array(truth)) >= 0.97


def test_distractors_look_much_like_objects(regions):
    inputs, shown = regions
    accuracy = probe(inputs, np.array([what is not None for what in shown]))
    assert 0.9 < accuracy < 0.99


# --- pictures


def test_pictures_show_the_scene():
    plain = 0
    for number in range(25):
        scene = sample_scene(6, number)
        picture = np.asarray(draw_scene(scene, number), np.int32)
        bare = np.asarray(draw_scene(Scene(scene.background, ()), number), np.int32)
        changed = np.abs(picture - bare).max(axis=-1) > 0
        near = np.zeros((144, 192), bool)  # objects and the shadows they cast
        for x1, y1, x2, y2 in (box for group in scene.groups for box in group.boxes):
            assert changed[y1:y2, x1:x2].mean() > 0.25
            near[y1 : y2 + 8, x1 : x2 + 4] = True
        assert not changed[~near].any()
        for group in scene.groups[2:]:  # never hidden
            if group.pattern == "plain":
                x1, y1, x2, y2 = group.boxes[0]
                shades = picture[y1:y2, x1:x2].reshape(-1, 3)
                assert (shades == RGB[group.colour]).all(axis=-1).mean() > 0.1
                plain += 1
    assert plain >= 3


def test_nearer_group_is_drawn_over_the_farther():
    depth = [n for n in range(60) if sample_scene(6, n).relation in ("front", "behind")][:8]
    for number in depth:
        scene = sample_scene(6, number)
        near, far = scene.groups[:2]
        if scene.relation == "behind":
            near, far = far, near
        both, swapped, on_night, on_snow = (
            np.asarray(draw_scene(Scene(background, groups), number))
            for background, groups in (
                (scene.background, (near, far)),
                (scene.background, (far, near)),
                ("night", (near,)),
                ("snow", (near,)),
            )
        )
        np.testing.assert_array_equal(both, swapped)
        opaque = (on_night == on_snow).all(axis=-1)  # what lies behind makes no difference
        assert opaque.sum() > 200
        np.testing.assert_array_equal(both[opaque], on_night[opaque])


# --- report


def test_report_on_captions_known_by_heart(tmp_path):
    """Two images, every caption of one alike: held-back captions are perfect, constants half so."""
    texts = {"train": ["a b c d"], "test": ["a b c d", "e f g h i"]}
    images = [
        {"split": split, "sentences": [{"raw": text}] * 5}
        for split, several in texts.items()
        for text in several
    ]
    (tmp_path / "dataset_toy.json").write_text(json.dumps({"images": images}))
    figures = measure(tmp_path)
    assert figures["oracle"] == pytest.approx(10.0)
    assert figures["constant"] == pytest.approx(5.0)
    assert figures["constant_caption"] == "a b c d"
    assert figures["vocabulary"] == 9
    assert figures["lengths"] == {4: 10, 5: 5}


def test_boxes_alone_tell_places_where_asked(tmp_path):
    """Pixels, captions and boxes stay; features lose all that depends on where a thing stands."""
    usual = make_toy_scenes(tmp_path / "usual", sizes=(3, 1, 0))
    blind = make_toy_scenes(tmp_path / "blind", sizes=(3, 1, 0), boxes_only=True)
    assert (usual / "dataset_toy.json").read_bytes() == (blind / "dataset_toy.json").read_bytes()
    for image in (1, 2, 3, 4):
        boxes = [np.load(d / f"bu/cocobu_box_relative/{image}.npy") for d in (usual, blind)]
        np.testing.assert_array_equal(*boxes)
        features = [np.load(d / f"bu/cocobu_att/{image}.npy") for d in (usual, blind)]
        assert features[0].shape == features[1].shape
        assert (features[0] != features[1]).any(axis=1).all()
    # Each kind is found again as it is, and not taken for the other.
    stamp = (blind / "manifest.json").stat().st_mtime_ns
    make_toy_scenes(blind, sizes=(3, 1, 0), boxes_only=True)
    assert (blind / "manifest.json").stat().st_mtime_ns == stamp
    make_toy_scenes(blind, sizes=(3, 1, 0))
    np.testing.assert_array_equal(
        np.load(blind / "bu/cocobu_att/1.npy"), np.load(usual / "bu/cocobu_att/1.npy")
    )


def test_plain_scenes_differ_in_their_captions_alone(tmp_path):
    usual = make_toy_scenes(tmp_path / "usual", sizes=(3, 1, 0))
    plain = make_toy_scenes(tmp_path / "plain", sizes=(3, 1, 0), plain=True)
    for image in (1, 2, 3, 4):
        for folder in ("att", "box_relative", "fc"):
            file = f"bu/cocobu_{folder}/{image}.npy"
            assert (usual / file).read_bytes() == (plain / file).read_bytes()
    images = json.loads((plain / "dataset_toy.json").read_text())["images"]
    captions = [[sentence["raw"] for sentence in image["sentences"]] for image in images]
    # Written by hand, from the pictures.
    assert captions[:2] == [
        ["two pink fish behind three checkered gray balls on the grass"],
        ["three spotted gray fish above two shiny red crescents on a carpet"],
    ]
    with pytest.raises(ConfigError, match="plain, near: captions are either"):
        make_toy_scenes(plain, sizes=(3, 1, 0), plain=True, near=True)
    make_toy_scenes(plain, sizes=(3, 1, 0))
    index = "dataset_toy.json"
    assert (plain / index).read_bytes() == (usual / index).read_bytes()


def test_attributes_of_place_are_gone(monkeypatch):
    """Without noise and projection: the spatial channels are 0, the others as they were."""
    monkeypatch.setattr(
        toy_regions, "_projection", lambda: np.eye(len(CHANNELS), 2048, dtype=np.float32)
    )
    scene = sample_scene(0, 0)
    usual, boxes = toy_regions.scene_features(scene, Draws(0, 0, purpose=2))
    blind, same_boxes = toy_regions.scene_features(scene, Draws(0, 0, purpose=2), True)
    np.testing.assert_array_equal(boxes, same_boxes)
    spatial = [at for (block, _), at in CHANNELS.items() if block in SPATIAL]
    other = [at for (block, _), at in CHANNELS.items() if block not in SPATIAL]
    np.testing.assert_array_equal(usual[:, other], blind[:, other])
    assert usual[:, spatial].max() > 0 and (blind[:, spatial] <= usual[:, spatial]).all()
