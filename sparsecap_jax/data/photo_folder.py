"""A folder of one's own photos: `captions.json` beside `images/`."""

import logging
import pathlib
from typing import Any

from sparsecap_jax.data.fields import Faults, check_path, field
from sparsecap_jax.data.records import (
    Blanks,
    Record,
    caption_pair,
    check_text_option,
    collect,
    image_id_from_filename,
)
from sparsecap_jax.errors import DataError
from sparsecap_jax.files import read_json

_SPLIT_NAMES = {"train": "train", "val": "val", "dev": "val", "test": "test"}
_UNUSED = ("", "unsplit")


def load_photo_folder(
    path: pathlib.Path, *, text: str = "tokens", faults: Faults | None = None
) -> dict[str, list[Record]]:
    """Read `{"images": [{"filename", "split", "captions": [text]}]}`.

    Splits are train, val (or dev) and test; images whose split is "unsplit" or "" are left out and
    counted in the log. An image of the test split may go without captions.

    Args:
        path: the JSON file.
        text: "tokens" trains on the words of the captions, "raw" on the captions as written.
        faults: what happens to bad images; None stops at the first one.

    Raises:
        DataError: the file is missing, broken or of another form, a photo comes twice, lacks
            captions, or lies out of the folder.
    """
    check_text_option(text)
    content = read_json(path, 'captions.json with "images"')
    images = field(content, "images", list, f"{path}: top level")
    blanks, unused = Blanks(), []
    places = [(f"{path}: images[{number}]", image) for number, image in enumerate(images)]

    def parse(image: Any, where: str) -> Record | None:
        split = field(image, "split", str, where)
        if split in _UNUSED:
            unused.append(where)
            return None
        if split not in _SPLIT_NAMES:
            known = ", ".join(_SPLIT_NAMES)
            raise DataError(f"{where}.split: expected one of {known}, found {split!r}")
        return _record(image, _SPLIT_NAMES[split], text, blanks, where)

    entries = ((where, lambda i=image, w=where: parse(i, w)) for where, image in places)
    splits = collect(entries, path, faults or Faults(unit="images"))
    blanks.report(path)
    if unused:
        logging.getLogger(__name__).info("%s: %d images are in no split", path, len(unused))
    return splits


def _record(image: Any, split: str, text: str, blanks: Blanks, where: str) -> Record:
    name = check_path(field(image, "filename", str, where), f"{where}.filename")
    image_id = image_id_from_filename(name)
    if image_id == "":
        raise DataError(f"{where}.filename: expected a file name, found {name!r}")
    texts = field(image, "captions", list, where)
    for number, caption in enumerate(texts):
        if not isinstance(caption, str):
            raise DataError(f"{where}.captions[{number}]: expected a string, found {caption!r:.80}")
    if split == "test" and not texts:
        return Record(image_id, split, name)
    pairs = [
        caption_pair(caption, text, f"{where}.captions[{n}]") for n, caption in enumerate(texts)
    ]
    captions, raws = blanks.drop(pairs, where)
    return Record(image_id, split, name, captions, raws)
