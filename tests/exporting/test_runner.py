"""The runner of exported folders without graphs: photos as ours are, faults in one line."""

import exported
import numpy as np
import pytest
from PIL import Image

from sparsecap_jax.photos.images import open_photo


@pytest.fixture
def captioner(tmp_path):
    """The runner of a folder without an extractor whose model reads boxes."""
    runner = exported.runner_of_source()
    captioner = runner.Captioner.__new__(runner.Captioner)
    captioner.folder, captioner.search = tmp_path, {"method": "greedy"}
    captioner.manifest = {"graphs": {"encode": {"inputs": {"features": {}, "boxes": {}}}}}
    return captioner


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_photos_are_those_that_we_read(tmp_path):
    runner, rng = exported.runner_of_source(), np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8))
    glass = colours.convert("RGBA")
    glass.putalpha(Image.fromarray(rng.integers(0, 256, (20, 30), np.uint8)))
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "glass.png": (glass, {}),
        "grey_glass.png": (glass.convert("LA"), {}),
        "palette.png": (colours.convert("P"), {"transparency": 3}),
        "bits.png": (colours.convert("1"), {}),
        "ink.jpg": (colours.convert("CMYK"), {}),
        "turned.jpg": (colours, {"exif": exif}),
        "broken.jpg": (colours, {"exif": b"Exif\0\0MM\0*\xff\xff\xff\xff\0\0"}),
    }
    for name, (picture, options) in files.items():
        picture.save(tmp_path / name, **options)
        expected = open_photo(tmp_path / name)
        photo = runner.upright(tmp_path / name)
        assert photo.size == expected.size == ((20, 30) if "turned" in name else (30, 20))
        np.testing.assert_array_equal(np.asarray(photo), np.asarray(expected), err_msg=name)
    assert (np.asarray(runner.upright(tmp_path / "glass.png")) != np.asarray(colours)).any()


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_photos_of_more_bits_are_refused(tmp_path, kind):
    Image.fromarray(np.full((4, 5), 300, kind)).save(tmp_path / "deep.tiff")
    with pytest.raises(SystemExit, match=r"deep\.tiff: more than 8 bits a channel; expected 8"):
        exported.runner_of_source().upright(tmp_path / "deep.tiff")


def test_what_is_missing_is_one_line(captioner):
    with pytest.raises(SystemExit, match="boxes: the model needs them"):
        captioner.caption([np.zeros((2, 6), np.float32)])
    with pytest.raises(SystemExit, match=r"the folder has no extractor; expected features, \*\.n"):
        captioner.photos(["a.jpg"])
    with pytest.raises(SystemExit, match=r"^usage:\npython caption\.py photo\.jpg \.\.\.\n"):
        exported.runner_of_source().main([])


def test_faulty_files_are_one_line(captioner, tmp_path, monkeypatch):
    runner = exported.runner_of_source()
    monkeypatch.setattr(runner, "Captioner", lambda folder: captioner)
    captioner.manifest["graphs"]["encode"]["inputs"] = {"features": {"shape": ["b", "r", 6]}}
    captioner.manifest["graphs"]["extractor"] = {"settings": {"size": 32}, "boxes": []}
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "text.npy").write_text("no array")
    np.save(tmp_path / "wide.npy", np.zeros((2, 7), np.float32))
    np.save(tmp_path / "flat.npy", np.zeros(6, np.float32))
    np.save(tmp_path / "none.npy", np.zeros((0, 6), np.float32))
    for name, message in {
        "absent.jpg": "absent.jpg: No such file or directory$",
        "absent.npy": "absent.npy: No such file or directory$",
        "text.jpg": "text.jpg: cannot identify image file",
        "text.npy": "text.npy: .*pickle",
        "wide.npy": r"features: found shape \(2, 7\); expected \[R, 6\]$",
        "flat.npy": r"features: found shape \(6,\); expected \[R, 6\]$",
        "none.npy": r"features: found shape \(0, 6\); expected \[R, 6\]$",
    }.items():
        with pytest.raises(SystemExit, match=message):
            runner.main([str(tmp_path / name)])
