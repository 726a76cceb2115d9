"""Reading photos: files of any kind that Pillow reads, or pictures in memory, upright, as RGB."""

import contextlib
import glob
import io
import os
import pathlib
import re
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from sparsecap_jax.data.records import PICTURE_FORMATS, find_pictures, is_picture
from sparsecap_jax.errors import DataError
from sparsecap_jax.files import absent, open_regular

EXAMPLES = pathlib.Path(__file__).with_name("examples")
"""Folder of photos that come with the package, and their licences."""
Photo = str | os.PathLike | Image.Image | np.ndarray | bytes
_MAX_PIXELS = 178_956_970  # Pillow refuses files of more; it warns of a half of them
_URL = re.compile(r"data:|[A-Za-z][A-Za-z0-9+.-]+:/")


class TooManyPixels(DataError):
    """A photo of more pixels than allowed, which was not decoded."""


def open_photo(photo: Photo, *, max_pixels: int = _MAX_PIXELS) -> Image.Image:
    """Read a photo as an RGB image, turned upright by its EXIF orientation.

    Transparent pixels are shown on white; 16-bit, 32-bit and float grey is scaled to 8 bits; of
    several frames or pages, the first counts. A broken EXIF is ignored.

    Args:
        photo: file of a format of `PICTURE_FORMATS`, or its bytes; a picture of Pillow, which stays
            as it is; or an array, uint8 `[H, W]`, `[H, W, 1]`, `[H, W, 3]` or `[H, W, 4]`.
        max_pixels: most pixels; Pillow refuses files of more than 178,956,970 in any case.

    Raises:
        DataError: no such file, not an image, truncated, an array of another kind, a URL, or, as a
            `TooManyPixels`, one of too many pixels.
    """
    if isinstance(photo, bytes):
        with _one_error("photo"), io.BytesIO(photo) as file:
            return _upright(Image.open(file, formats=PICTURE_FORMATS), max_pixels)
    if not isinstance(photo, str | os.PathLike):
        with _one_error(getattr(photo, "filename", "") or "picture in memory"):
            return _upright(_from_memory(photo), max_pixels)
    name = photo_name(photo)
    if _is_url(photo):
        raise DataError(f"{name:.200}: a URL; expected a file, nothing is downloaded")
    with _one_error(name), open_regular(photo) as file:
        return _upright(Image.open(file, formats=PICTURE_FORMATS), max_pixels)


def list_photos(place: str | os.PathLike) -> list[str | os.PathLike]:
    """Return the photos that a name stands for: a file, a folder, or a pattern such as `*.jpg`.

    Of a folder, with the folders in it, and of a pattern, which need not be one where a file has
    that name and where `**` stands for any folders, these are the pictures, by their endings,
    sorted; hidden files are left out. Any other name is returned as it is.

    Raises:
        DataError: a folder or a pattern without pictures.
    """
    if os.path.isdir(place):
        found: list[str | os.PathLike] = [*find_pictures(place)]
    elif set("*?[") & {*os.fspath(place)} and not os.path.lexists(place) and not _is_url(place):
        matches = map(pathlib.Path, glob.iglob(os.fspath(place), recursive=True))
        found = [*sorted(path for path in matches if is_picture(path))]
    else:
        return [place]
    if not found:
        raise DataError(f"{photo_name(place)}: no photos ({', '.join(PICTURE_FORMATS)})")
    return found


def photo_name(path: str | os.PathLike) -> str:
    """Return a path as text that can be printed; bytes that are not Unicode are escaped."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _is_url(path: str | os.PathLike) -> bool:
    return bool(_URL.match(photo_name(path))) and not os.path.exists(path)


def squeeze(photo: Image.Image, size: int) -> UInt8[np.ndarray, "S S 3"]:
    """Squeeze a photo into a square; boxes relative to the sides keep their places."""
    return np.asarray(photo.resize((size, size), Image.Resampling.BICUBIC))


@contextlib.contextmanager
def _one_error(name: str) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise type(error)(f"{name}: {error}") from None
    except FileNotFoundError as error:
        raise DataError(absent(name, "a photo")) from error
    except UnidentifiedImageError as error:
        expected = ", ".join(PICTURE_FORMATS)
        raise DataError(f"{name}: not an image; expected {expected}") from error
    except Image.DecompressionBombError as error:
        message = f"{name}: too many pixels; expected at most {_MAX_PIXELS:,}"
        raise TooManyPixels(message) from error
    except Exception as error:  # broken files lead Pillow's readers to errors of any type
        if isinstance(error, OSError) and error.strerror:
            raise DataError(f"{name}: cannot be read: {error.strerror}") from error
        raise DataError(f"{name}: broken image: {error or type(error).__name__}") from error


def _from_memory(photo: Image.Image | np.ndarray) -> Image.Image:
    if isinstance(photo, Image.Image):
        return photo.copy()
    expected = "a file name, a picture, or an array, uint8 [H, W], [H, W, 3] or [H, W, 4]"
    if not isinstance(photo, np.ndarray):
        raise DataError(f"{type(photo).__name__}; expected {expected}")
    shape = photo.shape[:2] if photo.shape[2:] == (1,) else photo.shape
    if photo.dtype != np.uint8 or len(shape) < 2 or shape[2:] not in ((), (3,), (4,)):
        raise DataError(f"{photo.dtype} {[*photo.shape]}; expected {expected}")
    return Image.fromarray(photo.reshape(shape))


def _upright(image: Image.Image, max_pixels: int) -> Image.Image:
    """Turn an image, which may change, as its EXIF says, and return it as RGB."""
    if not 0 < image.width * image.height <= max_pixels:
        size = f"{image.width} x {image.height} pixels"
        kind = TooManyPixels if image.width * image.height else DataError
        raise kind(f"{size}; expected at least one and at most {max_pixels:,}")
    image.load()
    with contextlib.suppress(Exception):  # of an EXIF that cannot be read
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.array(image, np.float32)
        np.nan_to_num(values, copy=False)
        top = float(values.max(initial=0))
        limits = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        limit = next((limit for limit in limits if top <= limit), top)
        np.clip(values, 0, limit, out=values)
        values *= np.float32(255.0 / limit)
        image = Image.fromarray(values.astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")
