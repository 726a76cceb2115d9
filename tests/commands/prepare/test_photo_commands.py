"""The subcommands `extract` and `imagine`, from their command lines."""

import json
import sys

import numpy as np
import pytest
from PIL import Image
from prepare_runs import run_prepare as run

from sparsecap_jax.data.features import RegionFeatures
from sparsecap_jax.data.stores import NpyFolderStore
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.photos.extractors import grid_boxes


class Colour:
    """The mean colour."""

    feature_size = 3

    def __init__(self):
        self.settings = {"extractor": "test_photo_commands:Colour"}

    def __call__(self, photos):
        means = [np.asarray(photo, np.float32).mean(axis=(0, 1)) for photo in photos]
        return [RegionFeatures(mean[None], grid_boxes(1, 1), mean) for mean in means]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "images").mkdir(parents=True)
    images = []
    for number in range(8):
        split = "test" if number == 7 else "train"
        name, captions = f"{number}.png", ["a red square", f"the square of {number}"]
        Image.new("RGB", (4, 4), (number * 9, 3, 0)).save(folder / "images" / name)
        images.append({"filename": name, "split": split, "captions": captions})
    (folder / "captions.json").write_text(json.dumps({"images": images}))
    return folder


def test_photos_become_features_and_a_dataset(photos, tmp_path, capsys):
    features = tmp_path / "features"
    (features / "cocobu_fc").mkdir(parents=True)
    for name in (".extractor.json.abcd1234", "cocobu_fc/.7.npy.abcd1234"):  # of a killed command
        (features / name).write_text("")
    extractor = f"{__name__}:Colour"
    assert extractor.partition(":")[0] in sys.modules
    run(
        "extract", f"--images={photos / 'images'}", f"--output={features}",
        f"--extractor={extractor}", "--batch_size=3",
    )  # fmt: skip
    assert not [*features.rglob(".*")]
    np.testing.assert_array_equal(NpyFolderStore(features, 3)[5].features, [[45, 3, 0]])
    text = tmp_path / "text"
    text.mkdir()
    (text / "captions.json").write_bytes((photos / "captions.json").read_bytes())
    run("inspect", f"--features={features}")
    shown = capsys.readouterr().out
    assert "8/8 photos" in shown and "image 0: width 3\n" in shown
    arguments = f"--photos={photos}", f"--features={features}"
    run("imagine", *arguments, f"--text=photos:{text}", f"--output={tmp_path / 'out'}")
    shown = capsys.readouterr().out
    assert "photos: 7 training images, 14 captions" in shown
    kept = json.loads((tmp_path / "out" / "extractor.json").read_text())
    assert kept["extractor"] == "test_photo_commands:Colour"
    with pytest.raises(ConfigError, match="two sources are named 'photos'"):
        run("imagine", *arguments, f"--text=photos:{photos}", f"--output={tmp_path / 'other'}")


def test_faulty_command_lines(photos, tmp_path):
    paths = f"--images={photos}", f"--output={tmp_path / 'x'}"
    with pytest.raises(ConfigError, match=r"--pyramid is 'one'"):
        run("extract", *paths, "--pyramid=one")
    with pytest.raises(ConfigError, match="2 --photos, 1 --features"):
        run("imagine", "--photos=a,b", "--features=c", "--output=d")
    with pytest.raises(ConfigError, match="--text: found 'karpathy'"):
        run("imagine", "--photos=a", "--features=c", "--text=karpathy", "--output=d")
