"""Karpathy split JSON: which images there are, in which split, with which captions.

Format: `{"images": [{"filename", "split", "sentences": [{"tokens", "raw"}], "cocoid"?}]}`, from
Karpathy & Fei-Fei, "Deep Visual-Semantic Alignments for Generating Image Descriptions" (2015).
"""

import dataclasses
import functools
import os
from typing import Any

from sparsecap_jax.data.fields import Faults, check_path, check_text, field
from sparsecap_jax.data.records import (
    SPLITS,
    Blanks,
    ImageId,
    Record,
    check_text_option,
    checked_id,
    collect,
    image_id_from_filename,
    normalize_id,
)
from sparsecap_jax.errors import DataError
from sparsecap_jax.files import read_json

__all__ = [
    "SPLITS",
    "ImageId",
    "Record",
    "image_id_from_filename",
    "load_karpathy",
    "normalize_id",
    "split_ids",
]

# `restval`: the images of COCO val2014 that are in neither Karpathy val nor test.
_SPLIT_NAMES = {"train": "train", "restval": "train", "val": "val", "test": "test"}


def load_karpathy(
    path: str | os.PathLike, *, text: str = "tokens", faults: Faults | None = None
) -> dict[str, list[Record]]:
    """Read a Karpathy split JSON.

    Blank captions are left out, with one logged warning that counts them.

    Args:
        path: the JSON file.
        text: what `Record.captions` holds: "tokens", the split's own tokens joined by blanks (what
            the reference trains on; lower case, no punctuation), or "raw", the captions as written.
        faults: what happens to bad images; None stops at the first one.

    Returns:
        `{"train": [...], "val": [...], "test": [...]}`, each in file order; `restval` is in train.

    Raises:
        DataError: missing or unreadable file, broken JSON, wrong shape, unknown split name, an
            image without captions, an image id that occurs twice, a path out of the image folder.
        ConfigError: unknown `text`.
    """
    check_text_option(text)
    images = field(read_json(path, "a Karpathy split JSON"), "images", list, f"{path}: top level")
    blanks = Blanks()
    places = ((f"{path}: images[{number}]", image) for number, image in enumerate(images))
    entries = ((w, functools.partial(_parse_image, image, w, text, blanks)) for w, image in places)
    splits = collect(entries, path, faults or Faults())
    blanks.report(path)
    return splits


def _parse_image(image: Any, where: str, text: str, blanks: Blanks) -> Record:
    """Return the record of one entry of "images"."""
    _split(image, where)
    sentences = field(image, "sentences", list, where)
    pairs = [_parse_sentence(s, f"{where}.sentences[{n}]", text) for n, s in enumerate(sentences)]
    captions, raws = blanks.drop(pairs, where)
    return dataclasses.replace(_parse_bare(image, where), captions=captions, raw=raws)


def _image_id(image: dict[str, Any], where: str) -> ImageId:
    """Return `cocoid` when there is one, else the id in the file name."""
    if "cocoid" in image:
        return checked_id(image["cocoid"], f"{where}.cocoid")
    filename = field(image, "filename", str, where)
    found = image_id_from_filename(filename)
    if found == "":
        raise DataError(f"{where}.filename: expected a file name, found {filename!r}")
    return found


def _parse_sentence(sentence: Any, where: str, text: str) -> tuple[str, str]:
    """Return the caption to train on and the raw caption of one entry of "sentences"."""
    if text == "raw":
        raw = caption = field(sentence, "raw", str, where)
    else:
        tokens = field(sentence, "tokens", list, where)
        if not all(isinstance(token, str) for token in tokens):
            raise DataError(f"{where}.tokens: expected a list of strings, found {tokens!r:.80}")
        caption = " ".join(tokens)
        raw = field(sentence, "raw", str, where) if "raw" in sentence else caption
    return check_text(caption, f"{where}.tokens"), check_text(raw, f"{where}.raw")


def split_ids(path: str | os.PathLike) -> dict[str, list[ImageId]]:
    """Image ids by split of a Karpathy JSON, which need not have captions.

    Raises:
        DataError: as `load_karpathy`.
    """
    images = field(read_json(path, "a Karpathy split JSON"), "images", list, f"{path}: top level")
    places = ((f"{path}: images[{number}]", image) for number, image in enumerate(images))
    entries = ((where, functools.partial(_parse_bare, image, where)) for where, image in places)
    splits = collect(entries, path, Faults())
    return {name: [record.image_id for record in records] for name, records in splits.items()}


def _parse_bare(image: Any, where: str) -> Record:
    """Return the record of one entry of "images", without captions."""
    filename = field(image, "filename", str, where)
    folder = field(image, "filepath", str, where) if "filepath" in image else ""
    return Record(
        image_id=_image_id(image, where),
        split=_split(image, where),
        filename=check_path(filename, f"{where}.filename"),
        folder=check_path(folder, f"{where}.filepath"),
    )


def _split(image: Any, where: str) -> str:
    split = field(image, "split", str, where)
    if split not in _SPLIT_NAMES:
        known = ", ".join(_SPLIT_NAMES)
        raise DataError(f"{where}.split: expected one of {known}, found {split!r}")
    return _SPLIT_NAMES[split]
