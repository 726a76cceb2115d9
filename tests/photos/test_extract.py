"""Folders of photos become folders of features."""

import json
import os
import pathlib
import re
import shutil
import signal
import weakref

import numpy as np
import pytest
from PIL import Image

from sparsecap_jax.data.features import RegionFeatures
from sparsecap_jax.data.records import PICTURE_ENDINGS
from sparsecap_jax.data.stores import NpyFolderStore, load_image_sizes
from sparsecap_jax.errors import ConfigError, DataError
from sparsecap_jax.photos.extract import extract_folder, find_photos
from sparsecap_jax.photos.extractors import grid_boxes
from sparsecap_jax.stopping import Stopped, on_signals


class MeanColours:
    """The mean colour of each half."""

    feature_size = 3

    def __init__(self, name="colours"):
        self.settings = {"extractor": name}
        self.seen = 0

    def __call__(self, photos):
        found = []
        for photo in photos:
            pixels = np.asarray(photo, np.float32)
            middle = pixels.shape[1] // 2
            halves = [pixels[:, :middle].mean((0, 1)), pixels[:, middle:].mean((0, 1))]
            found.append(RegionFeatures(np.stack(halves), grid_boxes(1, 2), pixels.mean((0, 1))))
            self.seen += 1
        return found


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    for number in range(5):
        image = Image.new("RGB", (8, 4), (number * 10, 0, 0))
        image.paste((0, 200, 0), (4, 0, 8, 4))
        image.save(folder / ("deeper" if number == 4 else "") / f"{number}.png")
    return folder


def extract(photos, output, extractor, **options):
    lines = []
    return extract_folder(
        photos, output, extractor, batch_size=2, report=lines.append, **options
    ), lines


def test_features_are_read_back(photos, tmp_path):
    result, lines = extract(photos, tmp_path / "out", MeanColours())
    assert (result.done, result.skipped, result.faults) == (5, 0, {})
    assert "5/5 photos" in lines[-2]
    store = NpyFolderStore(tmp_path / "out", 3, need_boxes=True)
    assert store.image_ids() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(store[3].features, [[30, 0, 0], [0, 200, 0]])
    np.testing.assert_array_equal(store[3].fc, [15, 100, 0])
    np.testing.assert_array_equal(store[3].boxes, [[0, 0, 0.5, 1], [0.5, 0, 1, 1]])


def test_continues_where_it_stopped(photos, tmp_path):
    extract(photos, tmp_path / "out", MeanColours())
    # Killed while writing image 2: its features, written last, are not there.
    (tmp_path / "out" / "cocobu_att" / "2.npy").unlink()
    again = MeanColours()
    result, _ = extract(photos, tmp_path / "out", again)
    assert (result.done, result.skipped, again.seen) == (1, 4, 1)
    assert len(NpyFolderStore(tmp_path / "out", 3).image_ids()) == 5


class Shrinking(MeanColours):
    """Takes photos of one pixel for each half, and counts those of full size that are alive."""

    def __init__(self):
        super().__init__()
        self.full, self.alive = [], []

    def shrink(self, photo):
        self.full.append(weakref.ref(photo))
        return photo.resize((2, 1), Image.Resampling.NEAREST)

    def __call__(self, photos):
        assert {photo.size for photo in photos} == {(2, 1)}
        self.alive.append(sum(photo() is not None for photo in self.full))
        return super().__call__(photos)


def test_photos_are_shrunk_one_at_a_time(photos, tmp_path):
    for number in range(5, 30):
        shutil.copy(photos / "0.png", photos / f"{number}.png")
    extractor = Shrinking()
    extract_folder(photos, tmp_path / "out", extractor, batch_size=10, report=lambda line: None)
    assert len(extractor.full) == 30 and len(extractor.alive) == 3
    assert max(extractor.alive) <= 2  # of the two threads that read ahead
    store = NpyFolderStore(tmp_path / "out", 3)
    np.testing.assert_array_equal(store[3].features, [[30, 0, 0], [0, 200, 0]])


def test_a_signal_stops_it_before_the_next_photos(photos, tmp_path):
    class Signalled(MeanColours):
        def __call__(self, pictures):
            os.kill(os.getpid(), signal.SIGTERM)
            return super().__call__(pictures)

    with (
        pytest.raises(Stopped, match="by SIGTERM; run the same command to") as stopped,
        on_signals(),
    ):
        extract(photos, tmp_path / "out", Signalled())
    assert stopped.value.code == 143
    assert NpyFolderStore(tmp_path / "out", 3).image_ids() == [0, 1]
    result, _ = extract(photos, tmp_path / "out", MeanColours())
    assert (result.done, result.skipped) == (3, 2)


def test_other_settings_do_not_mix(photos, tmp_path):
    extract(photos, tmp_path / "out", MeanColours())
    with pytest.raises(ConfigError, match=r"extractor\.json: begun with"):
        extract(photos, tmp_path / "out", MeanColours("others"))
    with pytest.raises(ConfigError, match="half"):
        extract(photos, tmp_path / "out", MeanColours(), half=True)
    os.truncate(tmp_path / "out/extractor.json", 2**21)
    with pytest.raises(DataError, match=r"extractor\.json: 2097152 bytes; expected settings of at"):
        extract(photos, tmp_path / "out", MeanColours())


def test_half_precision(photos, tmp_path):
    extract(photos, tmp_path / "out", MeanColours(), half=True)
    assert np.load(tmp_path / "out" / "cocobu_att" / "1.npy").dtype == np.float16
    assert np.load(tmp_path / "out" / "cocobu_box_relative" / "1.npy").dtype == np.float32


def test_bad_photos_stop_or_are_counted(photos, tmp_path):
    (photos / "1.png").write_bytes(b"no photo")
    (photos / "deeper" / "4.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"1\.png: not an image.*; --skip_bad leaves out what is"):
        extract(photos, tmp_path / "out", MeanColours())
    result, lines = extract(photos, tmp_path / "out", MeanColours(), skip_bad=True)
    assert result.done == 3 and [name[-5:] for name in result.faults] == ["1.png", "4.png"]
    assert sum(line.startswith("left out: ") for line in lines) == 2
    assert lines[-1].endswith("3 photos, 2 left out")


def test_two_photos_of_one_id(photos):
    Image.new("RGB", (2, 2)).save(photos / "3.jpg")
    with pytest.raises(DataError, match=r"3\.jpg and 3\.png are one image id"):
        find_photos(photos)


def test_photos_of_other_formats_and_without_hidden_files(photos):
    before = list(find_photos(photos))
    (photos / "._1.jpg").write_bytes(b"of another system")
    for name in ("21.webp", "22.TIF", "deeper/23.avif"):
        Image.new("RGB", (2, 2)).save(photos / name)
    assert sorted(find_photos(photos)) == sorted([*before, 21, 22, 23])
    assert {load_image_sizes(photos)[image_id] for image_id in (21, 22, 23)} == {(2, 2)}


def test_endings_are_those_of_the_docs_and_of_pillow():
    page = (pathlib.Path(__file__).parents[2] / "docs" / "photos.md").read_text("utf-8")
    listed = re.search(r"by their endings \((.*?),\s+in any case\)", page, re.DOTALL)[1]
    assert re.findall(r"`\.(\w+)`", listed) == [*PICTURE_ENDINGS]
    formats = Image.registered_extensions()
    assert {ending: formats[f".{ending}"] for ending in PICTURE_ENDINGS} == PICTURE_ENDINGS


def test_nothing_to_extract(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such file or folder; expected a folder of ph"):
        find_photos(tmp_path / "nowhere")
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match="no photos"):
        find_photos(tmp_path)


def test_an_extractor_must_keep_its_promises(photos, tmp_path):
    extractor = MeanColours()
    extractor.feature_size = 4
    with pytest.raises(DataError, match=r"features: expected shape \[R, 4\]"):
        extract(photos, tmp_path / "out", extractor)


def test_settings_are_written(photos, tmp_path):
    extract(photos, tmp_path / "out", MeanColours())
    settings = json.loads((tmp_path / "out" / "extractor.json").read_text())
    assert settings == {"extractor": "colours", "half": False}
