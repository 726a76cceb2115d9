"""Photos in all modes, orientations and states of decay."""

import io
import os
import pathlib
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from sparsecap_jax.errors import DataError
from sparsecap_jax.photos.images import (
    TooManyPixels,
    list_photos,
    open_photo,
    photo_name,
    squeeze,
)

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


@pytest.mark.parametrize("ending", ["webp", "gif", "bmp", "tif", "tiff", "avif", "png", "jpeg"])
def test_colours_survive_every_format(tmp_path, ending):
    large = two_halves().resize((64, 32), Image.Resampling.NEAREST)
    large.save(tmp_path / f"a.{ending}")
    pixels = np.asarray(open_photo(tmp_path / f"a.{ending}"))
    np.testing.assert_allclose(pixels[:, :28], np.broadcast_to(RED, (32, 28, 3)), atol=6)
    np.testing.assert_allclose(pixels[:, 36:], np.broadcast_to(BLUE, (32, 28, 3)), atol=6)


@pytest.mark.parametrize("ending", ["gif", "webp", "tiff", "png"])
def test_the_first_frame_counts(tmp_path, ending):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(np.asarray(open_photo(tmp_path / f"a.{ending}"))[4, 4], RED, atol=3)


@pytest.mark.parametrize(
    ("values", "greys"),
    [
        (np.float32([[0, 0.5, 1]]), [0, 127, 255]),
        (np.float32([[-9, 51, np.nan, 255]]), [0, 51, 0, 255]),
        (np.float32([[0, 65535, -np.inf]]), [0, 255, 0]),
        (np.int32([[-1, 0, 255]]), [0, 0, 255]),
        (np.int32([[0, 32896, 40000]]), [0, 128, 155]),
        (np.int32([[0, 1_000_000, 2_000_000]]), [0, 127, 254]),
        (np.uint16([[0, 257, 65535]]), [0, 1, 255]),
    ],
)
def test_deep_grey_in_tiff(tmp_path, values, greys):
    Image.fromarray(values).save(tmp_path / "a.tiff")
    assert np.asarray(open_photo(tmp_path / "a.tiff"))[0, :, 0].tolist() == greys


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


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tiff", "avif"])
@pytest.mark.parametrize("in_memory", [False, True])
def test_a_picture_in_memory_is_turned_as_its_file_is(tmp_path, ending, in_memory):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / f"a.{ending}"
    two_halves().resize((64, 32), Image.Resampling.NEAREST).save(path, exif=exif)
    with Image.open(path) as picture:
        pixels = np.asarray(open_photo(picture if in_memory else path))
        assert not in_memory or picture.size == (64, 32) or ending == "tiff"  # Pillow turned it
    assert pixels.shape == (64, 32, 3)  # the left half of the stored picture is on top
    np.testing.assert_allclose(pixels[:28], np.broadcast_to(RED, (28, 32, 3)), atol=8)
    np.testing.assert_allclose(pixels[36:], np.broadcast_to(BLUE, (28, 32, 3)), atol=8)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_broken_exif_turns_nothing(tmp_path):
    large = two_halves().resize((64, 32), Image.Resampling.NEAREST)
    large.save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\0\0")
    assert open_photo(tmp_path / "a.jpg").size == (64, 32)
    exif = Image.Exif()
    exif[0x0112] = 99
    large.save(tmp_path / "b.jpg", exif=exif)
    assert open_photo(tmp_path / "b.jpg").size == (64, 32)


def test_warnings_of_other_code_stay():
    """Importing the module leaves the filters of the process as they are."""
    code = (
        "import warnings; before = [*warnings.filters]; import sparsecap_jax.photos.images\n"
        "assert not [f for f in warnings.filters if f not in before and f[0] == 'ignore' "
        "and f[3] and f[3].match('PIL.Image')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_arrays():
    colours = np.asarray(two_halves())
    np.testing.assert_array_equal(np.asarray(open_photo(colours)), colours)
    for grey in (colours[..., 0], colours[..., :1]):
        np.testing.assert_array_equal(np.asarray(open_photo(grey))[..., 1], colours[..., 0])
    clear = np.dstack([colours, np.zeros_like(colours[..., 0])])
    assert (np.asarray(open_photo(clear)) == 255).all()


@pytest.mark.parametrize(
    ("photo", "message"),
    [
        (
            np.zeros((4, 4, 3), np.float32),
            r"memory: float32 \[4, 4, 3\]; expected .* uint8 \[H, W\]",
        ),
        (np.zeros((4, 4, 2), np.uint8), r"memory: uint8 \[4, 4, 2\]; expected"),
        (np.zeros(9, np.uint8), r"memory: uint8 \[9\]; expected"),
        (np.zeros((0, 4, 3), np.uint8), r"memory: 4 x 0 pixels; expected at least one"),
        (Image.new("RGB", (0, 3)), r"memory: 0 x 3 pixels; expected at least one"),
        ("https://example.org/a.jpg", r"^https://example\.org/a\.jpg: a URL; expected a file"),
        (pathlib.Path("https://example.org/a.jpg"), "a URL; expected a file"),
        ("s3://bucket/a.jpg", "a URL; expected a file"),
        ("data:image/png;base64," + 9999 * "A", "^data:image/png;base64,A{178}: a URL; expected"),
        (9999 * "a", "cannot be read: File name too long"),
        ("a\0b.jpg", "broken image: embedded null byte"),
        (".", r"^\.: cannot be read: Is a directory"),
    ],
)
def test_what_is_no_photo(photo, message):
    with pytest.raises(DataError, match=message):
        open_photo(photo)


def test_a_file_may_be_named_like_a_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    two_halves().save("data:a.png")
    assert open_photo("data:a.png").size == (4, 2)


def test_folders_and_patterns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = "b.JPG a.png notes.txt .c.jpg ._d.jpg d/2.webp d/1.tif d/.e/3.gif [x].png d/deep/4.avif"
    for name in names.split():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "folder.jpg").mkdir()

    def listed(place):
        return [os.fspath(path) for path in list_photos(place)]

    deep = ["d/1.tif", "d/2.webp", "d/deep/4.avif"]
    assert listed(".") == ["[x].png", "a.png", "b.JPG", *deep]
    assert listed(pathlib.Path("d")) == listed("d/**") == deep
    assert listed("**/*.png") == ["[x].png", "a.png"]
    assert listed("*") == ["[x].png", "a.png", "b.JPG"]
    assert listed("d/?.*") == deep[:2]
    assert listed("[x].png") == ["[x].png"]  # that file, no pattern
    assert listed("https://a.b/c.jpg?x=1") == ["https://a.b/c.jpg?x=1"]  # a URL, no pattern
    assert listed("notes.txt") == ["notes.txt"] and listed("missing.jpg") == ["missing.jpg"]
    for place in ("*.gif", "folder.jpg"):
        with pytest.raises(DataError, match=r"no photos \(JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF\)"):
            list_photos(place)


def test_names_that_are_not_unicode(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff.jpg"
    pathlib.Path(os.fsdecode(path)).write_bytes(b"text")
    (found,) = list_photos(tmp_path)
    assert photo_name(found) == f"{tmp_path}/\\xff.jpg"
    with pytest.raises(DataError, match=r"/\\xff\.jpg: not an image"):
        open_photo(found)


def jpeg_bytes():
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def png_header(width, height):
    chunk = b"IHDR" + struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(chunk))
    empty = b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + crc + empty


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an image"),
        (b"a text about photos", "not an image"),
        (jpeg_bytes()[:600], "broken image"),
        (b"GIF89a\x01\x00\x01\x00\x00\x00\x00;", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image; expected JPEG, PNG,"),
        (png_header(60_000, 60_000), r"too many pixels; expected at most 178,956,970$"),
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


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_the_bytes_of_a_file_are_as_good_as_the_file(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    content = path.read_bytes()
    np.testing.assert_array_equal(np.asarray(open_photo(content)), np.asarray(open_photo(path)))
    with pytest.raises(DataError, match=r"^photo: not an image; expected JPEG, PNG"):
        open_photo(b"no photo")
    with pytest.raises(DataError, match=r"^photo: "):
        open_photo(content[: len(content) // 2])


def test_a_limit_of_pixels_holds_before_decoding(tmp_path):
    path = tmp_path / "a.png"
    two_halves().save(path)
    for photo in (path, path.read_bytes(), two_halves()):
        assert open_photo(photo, max_pixels=8).size == (4, 2)
        with pytest.raises(TooManyPixels, match=r"4 x 2 pixels; .* at most 7$"):
            open_photo(photo, max_pixels=7)
    cut = path.read_bytes()[:-20]
    with pytest.raises(TooManyPixels, match=r"^photo: 4 x 2 pixels"):
        open_photo(cut, max_pixels=7)
