"""The grid of pictures with their boxes and captions, read back from its pixels."""

import numpy as np
import pytest
from PIL import Image

from sparsecap_jax.data.datasets import Dataset
from sparsecap_jax.data.features import RegionFeatures
from sparsecap_jax.data.records import Record
from sparsecap_jax.errors import DataError
from sparsecap_jax.evaluation import plots

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


@pytest.mark.parametrize(("count", "columns", "rows"), [(5, 3, 2), (4, 3, 2), (1, 1, 1), (2, 2, 1)])
def test_every_picture_is_drawn_in_its_place(tmp_path, monkeypatch, count, columns, rows):
    figures, save = [], plots.save_figure
    monkeypatch.setattr(plots, "save_figure", lambda f, path: (figures.append(f), save(f, path)))
    records, dataset = scenes(tmp_path, count)
    captions = {
        "dense": {n: f"dense {n}" for n in range(count)},
        "sparse": dict.fromkeys(range(count), "x" * 60),
    }
    plots.caption_grid(tmp_path / "grid.png", records, dataset, captions, columns=columns)
    axes = figures[0].axes
    assert len(axes) == rows * columns
    for number, axis in enumerate(axes[:count]):
        lines = [f"reference: a reference {number}", f"dense: dense {number}"]
        lines += ["sparse: " + "x" * 44, "x" * 16]  # wrapped after 52 characters
        assert axis.get_title("left") == "\n".join(lines)
    with Image.open(tmp_path / "grid.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    height = len(pixels)
    for number, axis in enumerate(axes):
        box = axis.get_window_extent()  # of a figure of 100 dots an inch; the file has 110
        x, y = (int(1.1 * value) for value in ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2))
        expected = COLOURS[number] if number < count else (255, 255, 255)
        np.testing.assert_array_equal(pixels[height - y, x], expected)
    boxed, *others = [len(axis.patches) for axis in axes]
    assert boxed == 1 and not any(others)
    assert axes[0].patches[0].get_bbox().bounds == (9.5, 9.5, 20, 20)  # pixel centres are integers


def test_a_picture_that_cannot_be_read_leaves_no_file(tmp_path):
    records, dataset = scenes(tmp_path, 3)
    texts = {"dense": dict.fromkeys(range(3), "a")}
    (tmp_path / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"1\.png: not an image"):
        plots.caption_grid(tmp_path / "grid.png", records, dataset, texts)
    (tmp_path / "1.png").unlink()
    with pytest.raises(DataError, match=r"1\.png: no such file"):
        plots.caption_grid(tmp_path / "grid.png", records, dataset, texts)
    assert not list(tmp_path.glob("*grid*"))
