"""Formats of files of captions and of references."""

import itertools
import json
import os
import pathlib
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from sparsecap_jax.data.karpathy import load_karpathy
from sparsecap_jax.data.records import (
    check_text,
    data_error,
    image_id_from_filename,
    normalize_id,
    read_lines,
)
from sparsecap_jax.errors import DataError
from sparsecap_jax.files import read_json, unique_keys


def load_captions(path: str | os.PathLike) -> dict[Hashable, str]:
    """Read captions in COCO's results format, `[{"image_id": id, "caption": text}, ...]`.

    Other fields are ignored; ids become integers where they are all digits. A name in `.jsonl`
    stands for one entry a line; `{id: [caption]}` is read too, and `{path: caption}` and
    `{path: entry}`, as `sparsecap caption` writes captions of photos: their ids are those of the
    paths (see `image_id_from_filename`).

    Raises:
        DataError: the file is missing or broken, an entry lacks a field or has one of another
            type, or an image has two captions. The message names the entry, or the line.
    """
    entries, places = read_entries(path)
    if isinstance(entries, dict) and entries:
        rows = ((f"{path}: {key!r}", key, texts) for key, texts in entries.items())
        return {image_id: text for image_id, (text,) in _of_pairs(rows, single=True).items()}
    if not isinstance(entries, list) or not entries:
        expected = 'a list of {"image_id", "caption"}, or {path: caption} of photos'
        raise DataError(f"{path}: found {entries!r:.80}, expected {expected}")
    captions: dict[Hashable, str] = {}
    for image_id, caption, where in _annotations(entries, places):
        if image_id in captions:
            raise DataError(f"{where}.image_id: image {image_id!r} has a caption already")
        captions[image_id] = caption
    return captions


def load_caption_sets(path: str | os.PathLike) -> dict[Hashable, list[str]]:
    """Return several captions of each image, for `text_statistics.describe_sets`.

    A file that `sparsecap caption --candidates` wrote, or any form of `load_references`: an image
    several times in COCO's results, `{id: [captions]}`.

    Raises:
        DataError: the file is missing or broken; the message names the entry.
    """
    content, places = read_entries(path)
    first = content[0] if isinstance(content, list) and content else None
    if not isinstance(first, dict) or "candidates" not in first:
        return load_references(path)
    rows = []
    for entry, where in zip(content, places, strict=False):
        listed = _field(entry, "candidates", where)
        if not isinstance(listed, list):
            raise DataError(f"{where}.candidates: found {listed!r:.80}, expected a list")
        texts = [_field(one, "caption", f"{where}.candidates[{n}]") for n, one in enumerate(listed)]
        rows.append((where, _field(entry, "image_id", where), texts))
    return _of_pairs(rows)


def load_references(path: str | os.PathLike) -> dict[Hashable, list[str]]:
    """Return all reference captions of each image.

    Formats: COCO annotation files (`{"images", "annotations": [{"image_id", "caption"}]}`, or the
    list of annotations alone, or one a line in `.jsonl`), Karpathy splits
    (`{"images": [{"sentences": [{"raw"}], ...}]}`, all splits together), photo folders
    (`{"images": [{"filename", "captions"}]}`) and plain `{id: [captions]}`. Ids become integers
    where they are all digits; the id of a photo is that of its file name (see
    `image_id_from_filename`).

    Raises:
        DataError: the file is missing, broken or of another format; the message names the entry.
    """
    content, places = _read(path)
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        content = content["annotations"]
    if isinstance(content, list):
        references: dict[Hashable, list[str]] = {}
        for image_id, caption, _ in _annotations(content, places):
            references.setdefault(image_id, []).append(caption)
    elif isinstance(content, dict) and isinstance(content.get("images"), list):
        references = _of_images(path, content["images"])
    elif isinstance(content, dict):
        references = _of_pairs((f"{path}: {key!r}", key, texts) for key, texts in content.items())
    else:
        expected = "COCO annotations, a Karpathy split or {id: [captions]}"
        raise DataError(f"{path}: found {content!r:.80}, expected {expected}")
    if not references:
        raise DataError(f"{path}: no captions; expected references")
    return references


def read_entries(path: str | os.PathLike) -> tuple[Any, Iterable[str]]:
    """Return the content of a file of captions, and the places of its entries if it is a list.

    Captions of photos, `{path: caption}` or `{path: entry}`, become a list of entries; other
    content stays as it is.

    Raises:
        DataError: the file is missing or broken, or two photos have one id.
    """
    content, places = _read(path)
    values = content.values() if isinstance(content, dict) else [content]
    if not all(isinstance(value, str | dict) for value in values):
        return content, places
    found: list[dict[str, Any]] = []
    names: dict[Hashable, str] = {}
    for name, value in content.items():
        image_id = _id(image_id_from_filename(name), f"{path}: {name!r:.80}")
        other = names.setdefault(image_id, name)
        if other != name:
            both = f"{other!r:.80} and {name!r:.80} are one image id"
            raise DataError(f"{path}: {both}; expected photos of different names")
        entry = value if isinstance(value, dict) else {"caption": value}
        found.append({"image_id": image_id, **entry})
    return found, [f"{path}: {name!r}" for name in content]


def _read(path: str | os.PathLike) -> tuple[Any, Iterable[str]]:
    """Return the content of a JSON or `.jsonl` file, and the places of its entries if a list."""
    if not os.fspath(path).endswith(".jsonl"):
        return read_json(path), (f"{path}: entry {number}" for number in itertools.count())
    content, places = [], []
    for number, line in enumerate(read_lines(pathlib.Path(path), "one JSON object a line"), 1):
        if line.strip():
            with data_error(f"{path}: line {number}: broken JSON", ValueError, RecursionError):
                content.append(json.loads(line, object_pairs_hook=unique_keys))
            places.append(f"{path}: line {number}")
    return content, places


def _annotations(
    entries: Sequence[Any], places: Iterable[str]
) -> Iterable[tuple[Hashable, str, str]]:
    """Yield (image id, caption, place) of each annotation."""
    for entry, where in zip(entries, places, strict=False):
        image_id = _id(_field(entry, "image_id", where), f"{where}.image_id")
        yield image_id, _text(_field(entry, "caption", where), f"{where}.caption"), where


def _of_images(path: str | os.PathLike, images: list[Any]) -> dict[Hashable, list[str]]:
    first = images[0] if images and isinstance(images[0], dict) else {}
    if "sentences" in first:
        sentences = first["sentences"] if isinstance(first["sentences"], list) else ()
        raw = all(isinstance(sentence, dict) and "raw" in sentence for sentence in sentences)
        splits = load_karpathy(path, text="raw" if raw else "tokens")
        return {r.image_id: list(r.raw) for records in splits.values() for r in records}

    rows = []
    for number, image in enumerate(images):
        where = f"{path}: images[{number}]"
        name = _text(_field(image, "filename", where), f"{where}.filename")
        rows.append((where, image_id_from_filename(name), _field(image, "captions", where)))
    return _of_pairs(rows)


def _of_pairs(
    rows: Iterable[tuple[str, Any, Any]], single: bool = False
) -> dict[Hashable, list[str]]:
    """Collect captions, a `single` one an image or several, from (place, id, captions)."""
    references: dict[Hashable, list[str]] = {}
    for where, key, texts in rows:
        image_id = _id(key, where)
        if image_id in references:
            raise DataError(f"{where}: image {image_id!r} is there twice, expected once")
        if not isinstance(texts, list) or not texts or (single and len(texts) > 1):
            expected = "one caption" if single else "captions"
            raise DataError(f"{where}: found {texts!r:.80}, expected a list of {expected}")
        references[image_id] = [_text(text, f"{where}[{n}]") for n, text in enumerate(texts)]
    return references


def _field(entry: Any, name: str, where: str) -> Any:
    if not isinstance(entry, dict):
        raise DataError(f"{where}: found {entry!r:.80}, expected an object")
    if name not in entry:
        raise DataError(f"{where}: {name!r} is missing, found {sorted(entry)!r:.80}")
    return entry[name]


def _id(value: Any, where: str) -> Hashable:
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise DataError(f"{where}: found {value!r:.80}, expected an integer or a name")
    return normalize_id(value)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: found {value!r:.80}, expected text")
    return check_text(value, where)
