"""Karpathy split JSON: which images there are, in which split, with which captions.

Format: `{"images": [{"filename", "split", "sentences": [{"tokens", "raw"}], "cocoid"?}]}`, from
Karpathy & Fei-Fei, "Deep Visual-Semantic Alignments for Generating Image Descriptions" (2015).
"""

import dataclasses
import json
import logging
import os
import pathlib
import re
from typing import Any

from sparsecap_jax.errors import ConfigError, DataError

SPLITS = ("train", "val", "test")
# `restval`: the images of COCO val2014 that are in neither Karpathy val nor test.
_SPLIT_NAMES = {"train": "train", "restval": "train", "val": "val", "test": "test"}
# COCO names carry their id: COCO_val2014_000000391895.jpg, or plain 000000391895.jpg. Other
# underscored names stay whole: the last part of a Flickr8k name may be all digits by chance.
_COCO_NAME = re.compile(r"(?:COCO_[a-z]+[0-9]{4}_)?([0-9]+)")

ImageId = int | str


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One image of a split and its captions; the record type of every dataset.

    Attributes:
        image_id: names the feature files (`ID.npy`); an integer wherever it is all digits.
        split: "train", "val" or "test".
        filename: name of the picture file, without folders.
        captions: texts to train on (see `text` in `load_karpathy`).
        raw: the captions as people wrote them, for the metrics; same order as `captions`.
        folder: folder of the picture below the dataset's image folder; may be "".
    """

    image_id: ImageId
    split: str = "test"
    filename: str = ""
    captions: tuple[str, ...] = ()
    raw: tuple[str, ...] = ()
    folder: str = ""


def normalize_id(image_id: ImageId) -> ImageId:
    """Return `image_id` as an integer when it is all ASCII digits, else unchanged."""
    if isinstance(image_id, str) and image_id.isascii() and image_id.isdigit():
        # More digits than this are a hash, not a number (and Python refuses to parse thousands).
        return int(image_id) if len(image_id) <= 18 else image_id
    return image_id


def image_id_from_filename(filename: str) -> ImageId:
    """Return the id that a picture's file name stands for.

    Args:
        filename: e.g. "COCO_val2014_000000391895.jpg" -> 391895, "1000268201_693b08cb0e.jpg" ->
            "1000268201_693b08cb0e". Folders in it are ignored.

    Returns:
        The integer in a COCO name or an all-digits name, else the name without its extension.
    """
    stem = pathlib.PurePosixPath(filename).stem
    match = _COCO_NAME.fullmatch(stem)
    return normalize_id(match.group(1)) if match else stem


def load_karpathy(path: str | os.PathLike, *, text: str = "tokens") -> dict[str, list[Record]]:
    """Read a Karpathy split JSON.

    Blank captions are left out, with one logged warning that counts them.

    Args:
        path: the JSON file.
        text: what `Record.captions` holds: "tokens", the split's own tokens joined by blanks (what
            the reference trains on; lower case, no punctuation), or "raw", the captions as written.

    Returns:
        `{"train": [...], "val": [...], "test": [...]}`, each in file order; `restval` is in train.

    Raises:
        DataError: missing or unreadable file, broken JSON, wrong shape, unknown split name, an
            image without captions, an image id that occurs twice.
        ConfigError: unknown `text`.
    """
    if text not in ("tokens", "raw"):
        raise ConfigError(f"text: expected 'tokens' or 'raw', found {text!r}")
    images = _field(_read_json(path), "images", list, f"{path}: top level")
    splits: dict[str, list[Record]] = {name: [] for name in SPLITS}
    first_seen: dict[ImageId, int] = {}
    blanks = 0
    for index, image in enumerate(images):
        where = f"{path}: images[{index}]"
        record, skipped = _parse_image(image, where, text)
        blanks += skipped
        first = first_seen.setdefault(record.image_id, index)
        if first != index:
            raise DataError(f"{where}: image id {record.image_id!r} is that of images[{first}] too")
        splits[record.split].append(record)
    if blanks:
        logging.getLogger(__name__).warning("%s: left out %d blank captions", path, blanks)
    return splits


def _parse_image(image: Any, where: str, text: str) -> tuple[Record, int]:
    """Return the record of one entry of "images", and how many blank captions it had."""
    split = _field(image, "split", str, where)
    if split not in _SPLIT_NAMES:
        raise DataError(
            f"{where}.split: expected one of {', '.join(_SPLIT_NAMES)}, found {split!r}"
        )
    sentences = _field(image, "sentences", list, where)
    captions, raws = [], []
    for number, sentence in enumerate(sentences):
        caption, raw = _parse_sentence(sentence, f"{where}.sentences[{number}]", text)
        if caption.strip():
            captions.append(caption)
            raws.append(raw)
    if not captions:
        raise DataError(f"{where}: no captions, expected at least one")
    record = Record(
        image_id=_image_id(image, where),
        split=_SPLIT_NAMES[split],
        filename=_field(image, "filename", str, where),
        captions=tuple(captions),
        raw=tuple(raws),
        folder=_field(image, "filepath", str, where) if "filepath" in image else "",
    )
    return record, len(sentences) - len(captions)


def _image_id(image: dict[str, Any], where: str) -> ImageId:
    """Return `cocoid` when there is one, else the id in the file name."""
    if "cocoid" in image:
        found = image["cocoid"]
        if isinstance(found, bool) or not isinstance(found, int | str) or found == "":
            raise DataError(f"{where}.cocoid: expected an integer or a name, found {found!r}")
        return normalize_id(found)
    filename = _field(image, "filename", str, where)
    found = image_id_from_filename(filename)
    if found == "":
        raise DataError(f"{where}.filename: expected a file name, found {filename!r}")
    return found


def _parse_sentence(sentence: Any, where: str, text: str) -> tuple[str, str]:
    """Return the caption to train on and the raw caption of one entry of "sentences"."""
    if text == "raw":
        raw = caption = _field(sentence, "raw", str, where)
    else:
        tokens = _field(sentence, "tokens", list, where)
        if not all(isinstance(token, str) for token in tokens):
            raise DataError(f"{where}.tokens: expected a list of strings, found {tokens!r:.80}")
        caption = " ".join(tokens)
        raw = _field(sentence, "raw", str, where) if "raw" in sentence else caption
    for name, value in (("tokens", caption), ("raw", raw)):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(f"{where}.{name}: not valid Unicode text: {error.reason}") from None
    return caption, raw


_JSON_NAMES = {dict: "an object", list: "a list", str: "a string"}


def _field(parent: Any, name: str, kind: type, where: str) -> Any:
    """Return `parent[name]`, checked to be of `kind`."""
    if not isinstance(parent, dict):
        raise DataError(f"{where}: expected an object, found {parent!r:.80}")
    if name not in parent:
        raise DataError(f"{where}: key {name!r} is missing, found keys {sorted(parent)!r:.80}")
    if not isinstance(parent[name], kind):
        expected = _JSON_NAMES[kind]
        raise DataError(f"{where}.{name}: expected {expected}, found {parent[name]!r:.80}")
    return parent[name]


def _read_json(path: str | os.PathLike) -> Any:
    """Parse a UTF-8 JSON file (a byte-order mark is allowed)."""
    try:
        text = pathlib.Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file, expected a Karpathy split JSON") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}: {error.reason}") from None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        ) from None
    except (RecursionError, ValueError) as error:  # nested too deep; an integer of 5,000 digits
        raise DataError(f"{path}: JSON that cannot be read: {error}") from None
