"""Photos in all modes, orientations and states of decay."""

import io

import numpy as np
import pytest
from PIL import Image

from sparsecap_jax.errors import DataError
from sparsecap_jax.photos.images import open_photo, squeeze

RED, BLUE = (255, 0, 0), (0, 0, 255)


def two_halves(mode="RGB"):
    """4 x 2 pixels, left half red, right half blue."""
    image = Image.new("RGB", (4, 2), RED)
    image.paste(BLUE, (2, 0, 4, 2))
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_survive_every_mode(tmp_path, mode):
    path = tmp_path / "a.png"
    two_halves(mode).save(path)
    pixels = np.asarray(open_photo(path))
    np.testing.assert_allclose(pixels[0, 0], RED, atol=3)
    np.testing.assert_allclose(pixels[1, 3], BLUE, atol=3)


def test_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    red, green, blue = np.asarray(open_photo(tmp_path / "a.jpg"))[8, 8]
    assert red > 240 and green < 15 and blue < 15


@pytest.mark.parametrize(
    ("mode", "colour", "grey"),
    [("L", 77, 77), ("1", 1, 255), ("LA", (77, 255), 77), ("I;16", 77 * 257, 77)],
)
def test_grey_modes(tmp_path, mode, colour, grey):
    Image.new(mode, (3, 3), colour).save(tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(open_photo(tmp_path / "a.png"))[1, 1], [grey] * 3)


def test_transparent_is_white_and_half_transparent_half(tmp_path):
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 128))
    image.save(tmp_path / "a.png")
    pixels = np.asarray(open_photo(tmp_path / "a.png"))
    np.testing.assert_array_equal(pixels[0, 0], [255] * 3)
    np.testing.assert_allclose(pixels[0, 1], [127] * 3, atol=1)


# Where the red half of the stored picture belongs, by EXIF orientation.
SIDES = {1: "left", 2: "right", 3: "right", 4: "left", 5: "top", 6: "top", 7: "bottom", 8: "bottom"}


@pytest.mark.parametrize("orientation", SIDES)
def test_exif_orientation(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    two_halves().resize((32, 16), Image.Resampling.NEAREST).save(
        tmp_path / "a.jpg", exif=exif, quality=95
    )
    image = open_photo(tmp_path / "a.jpg")
    assert image.size == ((32, 16) if orientation <= 4 else (16, 32))
    pixels = np.asarray(image).astype(int)
    reddish = pixels[..., 0] > pixels[..., 2]
    parts = {
        "left": reddish[:, :2], "right": reddish[:, -2:],
        "top": reddish[:2], "bottom": reddish[-2:],
    }  # fmt: skip
    opposite = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
    side = SIDES[orientation]
    assert parts[side].all() and not parts[opposite[side]].any()


def jpeg_bytes():
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an image"),
        (b"a text about photos", "not an image"),
        (jpeg_bytes()[:600], "broken image"),
        (b"GIF89a\x01\x00\x01\x00\x00\x00\x00;", "not an image"),
    ],
)
def test_bad_files_are_named(tmp_path, content, reason):
    (tmp_path / "bad.jpg").write_bytes(content)
    with pytest.raises(DataError, match=rf"bad\.jpg: {reason}"):
        open_photo(tmp_path / "bad.jpg")


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        open_photo(tmp_path / "a.jpg")


def test_squeeze_keeps_relative_places():
    pixels = squeeze(two_halves().resize((64, 32), Image.Resampling.NEAREST), 16)
    assert pixels.shape == (16, 16, 3)
    np.testing.assert_allclose(pixels[:, :6], np.broadcast_to(RED, (16, 6, 3)), atol=8)
    np.testing.assert_allclose(pixels[:, 10:], np.broadcast_to(BLUE, (16, 6, 3)), atol=8)
