"""The record type of every dataset, and what their readers share: ids, words, splits."""

import dataclasses
import logging
import pathlib
import re
from collections.abc import Callable, Iterable
from typing import Any

from sparsecap_jax.data.fields import Faults, check_text
from sparsecap_jax.errors import ConfigError, DataError

SPLITS = ("train", "val", "test")
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


def checked_id(value: Any, where: str) -> ImageId:
    """Return an id out of JSON, which must be an integer or a name."""
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise DataError(f"{where}: expected an integer or a name, found {value!r:.80}")
    return normalize_id(value)


def words(caption: str) -> list[str]:
    """Words of a caption as the tokens of Karpathy's splits have them.

    Lower case, apostrophes dropped ("a man's" -> "a mans"), split at everything that is neither a
    letter nor a digit ("t-shirt" -> "t", "shirt"). For datasets that have raw captions only.
    """
    return _NO_WORD.sub(" ", caption.lower().translate(_APOSTROPHES)).split()


_NO_WORD = re.compile(r"[\W_]+")
_APOSTROPHES = str.maketrans("", "", "'\u2019")


def caption_pair(raw: str, text: str, where: str) -> tuple[str, str]:
    """Return (caption to train on, raw caption) of a dataset without tokens of its own.

    Args:
        raw: the caption as written.
        text: "tokens" for its `words`, "raw" for the caption itself.
        where: its place, for errors.
    """
    check_text(raw, where)
    return (" ".join(words(raw)) if text == "tokens" else raw), raw


def collect(
    entries: Iterable[tuple[str, Callable[[], Record | None]]], path: Any, faults: Faults
) -> dict[str, list[Record]]:
    """Sort records into their splits.

    Args:
        entries: (place, function that parses the record there, None to leave it out).
        path: the file, for messages.
        faults: what happens to entries that raise a DataError, and to ids that occur twice.

    Returns:
        `{"train": [...], "val": [...], "test": [...]}`, each in file order.
    """
    splits: dict[str, list[Record]] = {name: [] for name in SPLITS}
    first_seen: dict[ImageId, str] = {}
    for where, parse in entries:
        try:
            record = parse()
            if record is None:
                continue
            first = first_seen.setdefault(record.image_id, where)
            if first != where:
                short = first.removeprefix(f"{path}: ")
                raise DataError(f"{where}: image id {record.image_id!r} is that of {short} too")
        except DataError as error:
            faults.add(error)
        else:
            splits[record.split].append(record)
    faults.report(path)
    return splits


class Blanks:
    """Counts blank captions that were left out; one warning tells how many."""

    def __init__(self):
        self.count = 0

    def drop(self, pairs: Iterable[tuple[str, str]], where: str) -> tuple[tuple, tuple]:
        """Return captions and raw captions without the blank ones.

        Raises:
            DataError: nothing is left.
        """
        pairs = list(pairs)
        kept = [pair for pair in pairs if pair[0].strip()]
        if not kept:
            raise DataError(f"{where}: no captions, expected at least one")
        self.count += len(pairs) - len(kept)
        captions, raws = zip(*kept, strict=True)
        return captions, raws

    def report(self, path: Any) -> None:
        """Log the count, if any."""
        if self.count:
            logging.getLogger(__name__).warning("%s: left out %d blank captions", path, self.count)


def check_text_option(text: str) -> None:
    """Raise a ConfigError unless `text` is "tokens" or "raw"."""
    if text not in ("tokens", "raw"):
        raise ConfigError(f"text: expected 'tokens' or 'raw', found {text!r}")
