"""Content of the caption explorer: marked words, regions, attention and small pictures."""

import base64
import io
import struct
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image

from sparsecap_jax.photos.images import Photo, open_photo
from sparsecap_jax.text import is_unspaced, unicode_words

# Parts a word that is marked in parts; takes no room and is no blank.
_JOINT = "\u200b"


def marked_words(caption: str, known: set[str]) -> tuple[str, list[int]]:
    """Find the words of a caption that are none of the `known` ones.

    Args:
        caption: any text.
        known: words of the references, see `text.unicode_words`.

    Returns:
        The caption, one blank between words and a zero-width space between letters that scripts
        without blanks write as words, and the places of unknown words among all of them.
    """
    texts = [_letters(word) for word in caption.replace(_JOINT, "").split()]
    flat = [part for parts in texts for part in parts]
    unknown = [place for place, part in enumerate(flat) if {*unicode_words(part)} - known]
    return " ".join(_JOINT.join(parts) for parts in texts), unknown


def _letters(word: str) -> list[str]:
    """Return a word of a script without blanks as its letters, with their marks; others whole."""
    if word.isascii() or not is_unspaced(word):
        return [word]
    parts: list[str] = []
    for char in word:
        if parts and unicodedata.category(char)[0] in "MP":
            parts[-1] += char
        else:
            parts.append(char)
    return parts


def pack_regions(
    boxes: Float[np.ndarray, "R 4"] | None, attention: Sequence[Sequence[Sequence[float]] | None]
) -> bytes:
    """Pack one image's regions and the attention of each model.

    Little-endian: uint16 R, uint8 whether there are boxes, their corners as uint16 of 65,535ths,
    and for each model uint16 W, uint16 R and `[W, R]` uint8, 255 times the root of the weights, so
    that small ones keep some precision: errors stay below 0.4% of the sum.

    Args:
        boxes: corners divided by width and height, or None.
        attention: for each model `[W][R]`, or None.
    """
    count = 0 if boxes is None else len(boxes)
    parts = [struct.pack("<HB", count, boxes is not None)]
    if boxes is not None:
        parts.append(np.round(np.clip(boxes, 0, 1) * 65535).astype("<u2").tobytes())
    for rows in attention:
        weights = np.array(rows or np.zeros((0, 0)), np.float64)
        parts.append(struct.pack("<HH", *(weights.shape if weights.size else (0, 0))))
        parts.append(np.round(255 * np.sqrt(weights.clip(0, 1))).astype("u1").tobytes())
    return b"".join(parts)


def thumbnail(photo: Photo, size: int) -> bytes:
    """Return a photo as WebP, its longer side at most `size` pixels.

    Raises:
        DataError: it cannot be read.
    """
    picture = open_photo(photo)
    picture.thumbnail((size, size), Image.Resampling.BICUBIC, reducing_gap=2.0)
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=72, method=2)
    return file.getvalue()


def pictures_text(thumbnails: Iterable[bytes | None]) -> str:
    """Return pictures as lines of base64, empty ones where there is none."""
    return "\n".join(base64.b64encode(content or b"").decode() for content in thumbnails)
