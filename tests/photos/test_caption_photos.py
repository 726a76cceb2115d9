"""Photos to captions: the same as extracting and captioning by hand."""

import json

import numpy as np
import pytest
from captioner_runs import WIDTH, make_run
from PIL import Image

from sparsecap_jax.captioner import Captioner
from sparsecap_jax.commands.caption import caption_photos
from sparsecap_jax.data.features import RegionFeatures
from sparsecap_jax.errors import CheckpointError, ConfigError, DataError
from sparsecap_jax.photos.extractors import grid_boxes
from sparsecap_jax.settings import use_plugin


class HalfColours:
    """The mean colours of both halves, each twice."""

    feature_size = WIDTH

    def __init__(self, scale=1.0):
        self.scale = scale
        self.settings = {"extractor": "test_caption_photos:HalfColours", "scale": scale}

    def __call__(self, photos):
        found = []
        for photo in photos:
            left, right = np.split(np.asarray(photo, np.float32), 2, axis=1)
            colours = np.stack([half.mean(axis=(0, 1)) for half in (left, right)])
            features = np.tile(colours * self.scale, 2).astype(np.float32)
            found.append(RegionFeatures(features, grid_boxes(1, 2), features.mean(axis=0)))
        return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    use_plugin("test_caption_photos")
    directory = make_run(tmp_path_factory.mktemp("run") / "run")
    (directory / "extractor.json").write_text(json.dumps(HalfColours(0.01).settings))
    (directory / "search.json").write_text(json.dumps({"search": "greedy", "min_length": 3}))
    return directory


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(3):
        pixels = rng.integers(0, 255, (1, 2, 3), np.uint8)
        image = Image.fromarray(pixels).resize((20, 10), Image.Resampling.NEAREST)
        image.save(folder / f"{number}.png")
    return sorted(folder.glob("*.png"))


def test_photos_are_extracted_and_captioned(run, photos):
    captioner = Captioner.load(run)
    found = list(captioner.caption_photos(photos, batch_size=2))
    regions = HalfColours(0.01)([Image.open(path) for path in photos])
    for caption, one in zip(found, regions, strict=True):
        expected = captioner.caption(one.features, one.boxes, one.fc, search="greedy", min_length=3)
        assert caption.text == expected.text
        assert abs(caption.log_prob - expected.log_prob) < 1e-4


def test_pictures_in_memory_and_other_searches(run, photos):
    captioner = Captioner.load(run)
    picture = Image.open(photos[0])
    (found,) = captioner.caption_photos([picture], search="beam", beam_size=2)
    one = HalfColours(0.01)([picture])[0]
    expected = captioner.caption(one.features, one.boxes, one.fc, search="beam", beam_size=2)
    assert found.text == expected.text


def test_command_reports_and_writes(run, photos, tmp_path):
    lines = []
    found = caption_photos(run, photos, tmp_path / "c.json", report=lines.append)
    assert lines == [f"{path}: {found[str(path)]}" for path in photos]
    assert json.loads((tmp_path / "c.json").read_text()) == found


def test_faults(run, photos, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"text")
    with pytest.raises(DataError, match=r"bad\.jpg: not an image"):
        list(Captioner.load(run).caption_photos([tmp_path / "bad.jpg"]))
    other = Captioner.load(make_run(tmp_path / "other"))
    with pytest.raises(ConfigError, match=r"extractor\.json"):
        list(other.caption_photos(photos))
    with pytest.raises(CheckpointError, match="neither a folder nor a captioner of the package"):
        Captioner.load("no-such-captioner")
