"""The picture of photos, captions and sizes, read back from its pixels and texts."""

import numpy as np
import pytest
from PIL import Image

from sparsecap_jax.data.datasets import Dataset
from sparsecap_jax.data.features import RegionFeatures
from sparsecap_jax.data.records import Record
from sparsecap_jax.errors import DataError
from sparsecap_jax.evaluation import caption_picture
from sparsecap_jax.evaluation.caption_picture import wrong_words

COLOURS = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (0, 200, 200)]
BOX = RegionFeatures(
    np.ones((1, 3), np.float32), np.float32([[0.25, 0.25, 0.75, 0.75]]), np.ones(3, np.float32)
)


class Store(dict):
    feature_size = 3

    def num_regions(self, image_id):
        return len(self[image_id].features)

    def check(self, image_ids):
        pass


def scenes(folder, count):
    """Pictures of one colour each, of which the first has a box of half its sides."""
    records = []
    for number in range(count):
        Image.new("RGB", (40, 40), COLOURS[number]).save(folder / f"{number}.png")
        records.append(Record(number, "test", f"{number}.png", raw=(f"a reference {number}",)))
    no_boxes = RegionFeatures(BOX.features, None, BOX.fc)
    store = Store({number: no_boxes if number else BOX for number in range(count)})
    return records, Dataset({"test": records}, store, folder)


SIZES = {"dense": 4_190_000, "sparse": 362_004}


def draw(path, records, dataset, captions):
    options = {"sizes": SIZES, "title": "A sentence."}
    caption_picture.caption_picture(path, records, dataset, captions, **options)


@pytest.mark.parametrize("count", [1, 3])
def test_photos_captions_and_sizes_are_drawn(tmp_path, monkeypatch, count):
    figures, save = [], caption_picture.save_figure
    monkeypatch.setattr(
        caption_picture, "save_figure", lambda f, path: (figures.append(f), save(f, path))
    )
    records, dataset = scenes(tmp_path, count)
    captions = {
        "dense": {n: f"a reference {n}" for n in range(count)},
        "sparse": dict.fromkeys(range(count), "a $wrong$ reference"),
    }
    draw(tmp_path / "picture.png", records, dataset, captions)
    (figure,) = figures
    with Image.open(tmp_path / "picture.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    *photos, bars = figure.axes
    assert len(photos) == count
    for number, axis in enumerate(photos):
        box = axis.get_window_extent()  # of a figure of 100 dots an inch; the file has 110
        x, y = (int(1.1 * value) for value in ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2))
        np.testing.assert_array_equal(pixels[len(pixels) - y, x], COLOURS[number])
        assert not axis.patches  # no boxes
    red = [text.get_text() for text in figure.texts if text.get_color() == caption_picture.WRONG]
    assert red == ["$wrong$"] * count
    assert figure.texts[0].get_text() == "A sentence."
    assert [bar.get_width() for bar in bars.patches] == list(SIZES.values())
    assert [text.get_text().strip() for text in bars.texts][::2] == ["4.19 MB", "0.36 MB"]
    edges = [text.get_window_extent().x1 for text in figure.texts]
    assert max(edges) < figure.get_window_extent().x1  # long lines are wrapped


def test_words_of_no_reference_are_wrong():
    words = wrong_words("A dog, runs - on Grass.", ["a dog on the grass", "it runs"])
    assert [word for word, wrong in words if wrong] == []
    words = wrong_words("two dogs on grass", ["a dog on the grass"])
    assert words == [("two", True), ("dogs", True), ("on", False), ("grass", False)]


def test_a_picture_that_cannot_be_read_leaves_no_file(tmp_path):
    records, dataset = scenes(tmp_path, 3)
    texts = dict.fromkeys(SIZES, dict.fromkeys(range(3), "a"))
    (tmp_path / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"1\.png: not an image"):
        draw(tmp_path / "picture.png", records, dataset, texts)
    (tmp_path / "1.png").unlink()
    with pytest.raises(DataError, match=r"1\.png: no such file"):
        draw(tmp_path / "picture.png", records, dataset, texts)
    assert not list(tmp_path.glob("*picture*"))
