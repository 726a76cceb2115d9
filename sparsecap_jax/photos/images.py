"""Reading photos: any mode, upright, as RGB."""

import os

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from sparsecap_jax.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png")
_MAX_PIXELS = 200_000_000


def open_photo(path: str | os.PathLike) -> Image.Image:
    """Read a photo as an RGB image, turned upright by its EXIF orientation.

    Transparent pixels are shown on white. 16-bit grey is scaled to 8 bits.

    Raises:
        DataError: no such file, not an image, truncated, or beyond 200 million pixels.
    """
    try:
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            width, height = image.size
            if width * height <= _MAX_PIXELS:
                image.load()
                return _rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; expected a photo") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: not an image; expected JPEG or PNG") from error
    except (OSError, SyntaxError, ValueError, MemoryError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: broken image: {error}") from error
    raise DataError(f"{path}: {width} x {height} pixels; expected at most {_MAX_PIXELS:,}")


def squeeze(photo: Image.Image, size: int) -> UInt8[np.ndarray, "S S 3"]:
    """Squeeze a photo into a square; boxes relative to the sides keep their places."""
    return np.asarray(photo.resize((size, size), Image.Resampling.BICUBIC))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, np.float64)
        limit = 255.0 if values.max(initial=0) <= 255 else 65535.0
        image = Image.fromarray(np.clip(values * (255.0 / limit), 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
