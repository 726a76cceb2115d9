"""Records, the images and captions of every dataset, and what the readers of datasets share."""

import contextlib
import dataclasses
import logging
import os
import pathlib
import re
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sparsecap_jax.errors import ConfigError, DataError
from sparsecap_jax.files import foreign_errors, read_bytes
from sparsecap_jax.text import words

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
# COCO names carry their id: COCO_val2014_000000391895.jpg, or plain 000000391895.jpg. Other
# underscored names stay whole: the last part of a Flickr8k name may be all digits by chance.
_COCO_NAME = re.compile(r"(?:COCO_[a-z]+[0-9]{4}_)?([0-9]+)")
PICTURE_ENDINGS = {
    **{"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP"},
    **{"tif": "TIFF", "tiff": "TIFF", "avif": "AVIF"},
}
"""Pillow's names of the formats of pictures that are read, by the endings of files."""
PICTURE_FORMATS = tuple(dict.fromkeys(PICTURE_ENDINGS.values()))
_EXTENSION = re.compile(rf"\.({'|'.join(PICTURE_ENDINGS)})$", re.IGNORECASE)
_JSON_NAMES: dict[Any, str] = {list: "a list", str: "a string", int | str: "an integer or a name"}
_MAX_NAME = 255  # bytes of the name of a file or folder, the limit of file systems
_MAX_LOGGED = 5  # faults that are logged one by one
_MAX_ID = 2**63 - 1  # longer ids are hashes, not numbers

ImageId = int | str


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One image of a split and its captions; the record type of every dataset.

    Attributes:
        image_id: names the feature files (`ID.npy`); see `normalize_id`.
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


Splits = dict[str, list[Record]]
"""Records of "train", "val" and "test"."""


def normalize_id(image_id: ImageId) -> ImageId:
    """Return one value for the number and the text of an id.

    It is an integer from 0 to 2^63 - 1, also where the text is all ASCII digits, else text.
    """
    if isinstance(image_id, str) and image_id.isascii() and image_id.isdigit():
        # Python refuses to parse thousands of digits.
        number = int(image_id.lstrip("0")[:20] or "0")
        return number if number <= _MAX_ID else image_id
    if isinstance(image_id, int) and not 0 <= image_id <= _MAX_ID:
        return str(image_id)
    return image_id


def by_id(pairs: Iterable[tuple[ImageId, Any]], where: Any) -> dict[ImageId, Any]:
    """Return values by normalized id, of (id, value) pairs; DataError where two ids are one."""
    values: dict[ImageId, Any] = {}
    spelled: dict[ImageId, ImageId] = {}
    for image_id, value in pairs:
        key = normalize_id(image_id)
        if key in values:
            raise DataError(f"{where}: {spelled[key]!r:.80} and {image_id!r:.80} are one image id")
        values[key], spelled[key] = value, image_id
    return values


def image_id_from_filename(filename: str) -> ImageId:
    """Return the integer in a COCO name or an all-digits name, else the name without its extension.

    "COCO_val2014_000000391895.jpg" -> 391895, "1000268201_693b08cb0e.jpg" ->
    "1000268201_693b08cb0e". Folders in the name, also of Windows, are ignored.
    """
    stem = pathlib.PurePosixPath(filename.replace("\\", "/")).stem
    match = _COCO_NAME.fullmatch(stem)
    return normalize_id(match.group(1)) if match else stem


def image_id_from_stem(name: str) -> ImageId:
    """Return `image_id_from_filename` of a name that may lack a picture's ending, such as .jpg."""
    return image_id_from_filename(_EXTENSION.sub("", name) + ".jpg")


def is_picture(path: pathlib.Path) -> bool:
    """Return whether a file has the ending of a picture."""
    return bool(_EXTENSION.search(path.name)) and path.is_file()


def find_pictures(folder: str | os.PathLike) -> list[pathlib.Path]:
    """Return the pictures in a folder and in the folders in it, sorted, without hidden ones."""
    root = pathlib.Path(folder)
    paths = sorted(filter(is_picture, root.rglob("*")))
    return [path for path in paths if "/." not in f"/{path.relative_to(root).as_posix()}"]


def checked_id(value: Any, where: str) -> ImageId:
    """Return an id out of JSON, which must be an integer or a name."""
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise DataError(f"{where}: expected an integer or a name, found {value!r:.80}")
    return normalize_id(value)


def field(parent: Any, name: str, kind: type | types.UnionType, where: str) -> Any:
    """Return `parent[name]`; DataError where `parent` is no object, or it is not of `kind`."""
    if not isinstance(parent, dict):
        raise DataError(f"{where}: expected an object, found {parent!r:.80}")
    if name not in parent:
        raise DataError(f"{where}: key {name!r} is missing, found keys {sorted(parent)!r:.80}")
    value = parent[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f"{where}.{name}: expected {_JSON_NAMES[kind]}, found {value!r:.80}")
    return value


def entries(content: Any, name: str, path: Any) -> Iterator[tuple[str, Any]]:
    """Yield (place, entry) of the list `name` in a JSON file; DataError where there is none."""
    for number, entry in enumerate(field(content, name, list, f"{path}: top level")):
        yield f"{path}: {name}[{number}]", entry


def data_error(problem: str, *errors: type[Exception]) -> contextlib.AbstractContextManager[None]:
    """Turn `errors` of the block into a DataError; see `foreign_errors`."""
    return foreign_errors(problem, errors=errors)


def check_text(text: str, where: str) -> str:
    """Return `text`, which must be Unicode that can be written (no lone surrogates)."""
    with data_error(f"{where}: not valid Unicode text", UnicodeEncodeError):
        text.encode()
    return text


def check_path(path: str, where: str) -> str:
    """Return a picture's path with `/`, which must stay below the folder of pictures."""
    posix = check_text(path, where).replace("\\", "/")
    parts = posix.split("/")
    too_long = any(len(part.encode()) > _MAX_NAME for part in parts)
    if too_long or "\0" in path or ".." in parts or posix[:1] == "/" or ":" in path[:2]:
        raise DataError(f"{where}: expected a path below the image folder, found {path!r:.80}")
    return posix


def check_filename(name: str, where: str) -> ImageId:
    """Return the image id of a picture's file name, which must not be empty."""
    image_id = image_id_from_filename(name)
    if image_id == "":
        raise DataError(f"{where}.filename: expected a file name, found {name!r}")
    return image_id


def check_split(image: Any, splits: dict[str, str], where: str) -> str:
    """Return the split of an image, whose name in the file is a key of `splits`."""
    split = field(image, "split", str, where)
    if split not in splits:
        raise DataError(f"{where}.split: expected one of {', '.join(splits)}, found {split!r}")
    return splits[split]


def read_lines(path: pathlib.Path, expected: str, errors: str = "strict") -> list[str]:
    """Return the lines of a text file; DataError where it is missing, empty, or not UTF-8.

    `errors` is that of `bytes.decode`.
    """
    content = read_bytes(path, expected).removeprefix(b"\xef\xbb\xbf")
    if not content.strip():
        raise DataError(f"{path}: the file is empty; expected {expected}")
    lines = []
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n"), start=1):
        with data_error(f"{path}: line {number} is not UTF-8", UnicodeDecodeError):
            lines.append(line.decode(errors=errors).removesuffix("\r"))
    return lines


def skip_advice(option: str) -> str:
    """Return the end of an error about one bad entry of many: the option that leaves it out."""
    return f"; {option} leaves out what is bad" if option else ""


class Faults:
    """Policy for bad entries: stop at the first one, or `skip`: leave out, log and count them.

    `option` is what the user sets to skip them; errors name it.
    """

    def __init__(self, skip: bool = False, option: str = ""):
        self.count = 0
        self._skip, self._option = skip, option

    def add(self, error: DataError) -> None:
        """Raise `error`, or log the first few and count it."""
        if not self._skip:
            raise DataError(f"{error}{skip_advice(self._option)}") from error
        self.count += 1
        if self.count <= _MAX_LOGGED:
            logger.warning("skipped: %s", error)

    def report(self, source: Any) -> None:
        """Log how many entries of `source` were skipped, if any."""
        if self.count:
            logger.warning("%s: skipped %d bad images or captions", source, self.count)


@dataclasses.dataclass(frozen=True)
class Source:
    """Input of a dataset's function.

    Attributes:
        path: the dataset's folder as the user named it; may be "".
        split_json: its main file in `path`, where there is a choice; "" for the usual one.
        text: content of `Record.captions`: "tokens" (the split's own, or the words of the captions
            where it has none) or "raw" (the captions as written).
        faults: what happens to bad entries.
        mixture: how often an epoch sees each source of an `imagined` dataset.
        may_create: whether datasets that are drawn on the spot may be written.
    """

    path: str | os.PathLike = ""
    split_json: str = ""
    text: str = "tokens"
    faults: Faults = dataclasses.field(default_factory=Faults)
    mixture: str = ""
    may_create: bool = False

    @property
    def directory(self) -> pathlib.Path:
        """The dataset's folder; ConfigError where it is not given."""
        if not os.fspath(self.path):
            raise ConfigError(
                "config.data.dir is empty; expected the folder of the split JSON and bu/ "
                "(--config.data.dir=DIR)"
            )
        return pathlib.Path(self.path)


class Collector:
    """Collects the records of a dataset: drops blank captions, rejects ids that occur twice.

    Args:
        source: the file or folder, for messages.
        text: see `Source`.
        faults: what happens to bad entries; None stops at the first one.

    Raises:
        ConfigError: unknown `text`.
    """

    def __init__(self, source: Any, text: str = "tokens", faults: Faults | None = None):
        if text not in ("tokens", "raw"):
            raise ConfigError(f"text: expected 'tokens' or 'raw', found {text!r}")
        self.text = text
        self.faults = faults or Faults()
        self._source = source
        self._blanks = 0

    def pair(self, raw: Any, where: str) -> tuple[str, str]:
        """Return the caption to train on and the raw one; `where` is its place, for errors."""
        if not isinstance(raw, str):
            raise DataError(f"{where}: expected a string, found {raw!r:.80}")
        check_text(raw, where)
        return (" ".join(words(raw)) if self.text == "tokens" else raw), raw

    def captions(self, pairs: Iterable[tuple[str, str]], where: str) -> dict[str, Any]:
        """Return the fields `captions` and `raw` of a record; DataError where all are blank."""
        pairs = list(pairs)
        kept = [pair for pair in pairs if pair[0].strip()]
        if not kept:
            raise DataError(f"{where}: no captions, expected at least one")
        self._blanks += len(pairs) - len(kept)
        captions, raw = zip(*kept, strict=True)
        return {"captions": captions, "raw": raw}

    def parsed(
        self, places: Iterable[tuple[str, Any]], parse: Callable[[Any, str], Any]
    ) -> Iterator[Any]:
        """Yield `parse(entry, place)` of (place, entry) pairs; bad entries are faults."""
        for where, entry in places:
            try:
                result = parse(entry, where)
            except DataError as error:
                self.faults.add(error)
            else:
                yield result

    def collect(
        self, places: Iterable[tuple[str, Any]], parse: Callable[[Any, str], Record | None]
    ) -> Splits:
        """Sort the records of (place, entry) pairs into splits, in order; log what was left out.

        `parse(entry, place)` makes a record, or returns None to leave the entry out.
        """
        splits: Splits = {name: [] for name in SPLITS}
        first_seen: dict[ImageId, str] = {}

        def parse_unique(entry: Any, where: str) -> Record | None:
            record = parse(entry, where)
            if record is None:
                return None
            first = first_seen.setdefault(record.image_id, where)
            if first != where:
                short = first.removeprefix(f"{self._source}: ")
                raise DataError(f"{where}: image id {record.image_id!r} is that of {short} too")
            return record

        for record in filter(None, self.parsed(places, parse_unique)):
            splits[record.split].append(record)
        self.faults.report(self._source)
        if self._blanks:
            logger.warning("%s: left out %d blank captions", self._source, self._blanks)
        return splits
