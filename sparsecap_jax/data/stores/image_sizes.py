"""Width and height of images, by which boxes in pixels become relative."""

import os
import pathlib

from sparsecap_jax.data.features import ImageSizes
from sparsecap_jax.data.records import (
    ImageId,
    checked_id,
    data_error,
    entries,
    field,
    image_id_from_filename,
    normalize_id,
)
from sparsecap_jax.errors import DataError
from sparsecap_jax.files import read_json

_COCO_FILES = ("captions_*.json", "image_info_*.json", "instances_*.json")
_PICTURES = (".jpg", ".jpeg", ".png")


def load_image_sizes(path: str | os.PathLike) -> ImageSizes:
    """Read (width, height) by image id.

    Args:
        path: a JSON file of COCO's form (`{"images": [{"id", "width", "height"}]}`) or
            `{id: [width, height]}`; a folder of COCO's files (`annotations/`); or a folder of
            pictures, whose headers are read.

    Raises:
        DataError: `path` is none of these.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        return _from_json(path)
    files = sorted(file for pattern in _COCO_FILES for file in path.glob(pattern))
    if files:
        return {key: size for file in files for key, size in _from_json(file).items()}
    pictures = sorted(p for p in path.rglob("*") if p.suffix.lower() in _PICTURES)
    if not pictures:
        raise DataError(f"{path}: holds neither COCO's .json files nor pictures")
    return {image_id_from_filename(p.name): _picture_size(p) for p in pictures}


def _from_json(path: pathlib.Path) -> dict[ImageId, tuple[int, int]]:
    content = read_json(path, "image sizes")
    sizes: dict[ImageId, tuple[int, int]] = {}
    if isinstance(content, dict) and "images" in content:
        for where, image in entries(content, "images", path):
            image_id = checked_id(field(image, "id", int | str, where), f"{where}.id")
            sizes[image_id] = _size([image.get("width"), image.get("height")], where)
    elif isinstance(content, dict):
        for key, value in content.items():
            sizes[normalize_id(key)] = _size(value, f"{path}: {key}")
    if not sizes:
        raise DataError(f"{path}: no image sizes; expected COCO's images or {{id: [w, h]}}")
    return sizes


def _size(value: object, where: str) -> tuple[int, int]:
    match value:
        case [int(width), int(height)] if width > 0 and height > 0:
            return width, height
    raise DataError(f"{where}: expected width and height, found {value!r:.60}")


def _picture_size(path: pathlib.Path) -> tuple[int, int]:
    from PIL import Image

    faults = OSError, ValueError, SyntaxError, Image.DecompressionBombError
    with (
        data_error(f"{path}: not a picture", *faults),
        Image.open(path, formats=("JPEG", "PNG")) as picture,
    ):
        return picture.size
