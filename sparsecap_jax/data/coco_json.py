"""COCO's own files: caption annotations, image infos, and id lists that cut them into splits."""

import dataclasses
import pathlib
import re
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

from sparsecap_jax.data.fields import Faults, check_path, field, read_lines
from sparsecap_jax.data.records import (
    SPLITS,
    Blanks,
    ImageId,
    Record,
    caption_pair,
    check_text_option,
    checked_id,
    collect,
    image_id_from_filename,
)
from sparsecap_jax.errors import DataError
from sparsecap_jax.files import read_json

OFFICIAL = ("captions_train2014.json", "captions_val2014.json")
_FOLDER = re.compile(r"COCO_([a-z]+[0-9]{4})_")

Splits = dict[str, list[Record]]


def load_coco_json(
    paths: Mapping[str, Iterable[pathlib.Path]],
    *,
    text: str = "tokens",
    ids: Mapping[str, Iterable[ImageId]] | None = None,
    faults: Faults | None = None,
) -> Splits:
    """Read COCO annotation files, `{"images": [...], "annotations": [...]}`.

    Args:
        paths: files by the split that their images belong to.
        text: "tokens" trains on the words of the captions, "raw" on the captions as written.
        ids: image ids by split, which cut the images anew: listed ones go where the list says, all
            others to "train" (unless "train" is listed too: then they are left out).
        faults: what happens to bad images; None stops at the first one.

    Raises:
        DataError: a file is missing, broken or of another shape, an image has no captions or comes
            twice, or listed ids are in none of the files.
    """
    check_text_option(text)
    blanks, faults = Blanks(), faults or Faults()
    chosen = {image_id: split for split, listed in (ids or {}).items() for image_id in listed}
    others = None if "train" in (ids or {}) else "train"
    entries = (
        entry
        for split, files in paths.items()
        for path in files
        for entry in _entries(path, read_json(path, "COCO annotations"), split, text, blanks)
    )

    def cut(where: str, parse) -> tuple[str, Any]:
        def moved() -> Record | None:
            record = parse()
            split = chosen.get(record.image_id, others)
            return split and dataclasses.replace(record, split=split)

        return where, moved if ids else parse

    source = ", ".join(str(path) for files in paths.values() for path in files)
    splits = collect((cut(*entry) for entry in entries), source, faults)
    blanks.report(source)
    found = {record.image_id for records in splits.values() for record in records}
    missing = [image_id for image_id in chosen if image_id not in found]
    if missing:
        shown = ", ".join(map(str, missing[:5]))
        message = f"{source}: {len(missing)} ids of the split lists are not there: {shown}"
        faults.add(DataError(message))
    return splits


def _entries(path: Any, content: Any, split: str, text: str, blanks: Blanks):
    """(place, function that makes the record) of every image in one file."""
    captions: dict[Any, list[tuple[str, str]]] = {}
    for number, entry in enumerate(field(content, "annotations", list, f"{path}: top level")):
        where = f"{path}: annotations[{number}]"
        image_id = field(entry, "image_id", int | str, where)
        raw = field(entry, "caption", str, where)
        captions.setdefault(image_id, []).append(caption_pair(raw, text, where))
    for number, image in enumerate(field(content, "images", list, f"{path}: top level")):
        where = f"{path}: images[{number}]"

        def parse(image=image, where=where) -> Record:
            record = _image(image, where, split)
            kept, raws = blanks.drop(captions.get(image["id"], ()), where)
            return dataclasses.replace(record, captions=kept, raw=raws)

        yield where, parse


def _image(image: Any, where: str, split: str) -> Record:
    """The record of one entry of "images", without captions."""
    image_id = checked_id(field(image, "id", int | str, where), f"{where}.id")
    name = image.get("file_name", "")
    if not isinstance(name, str):
        raise DataError(f"{where}.file_name: expected a string, found {name!r:.80}")
    folder = _FOLDER.match(name)
    name = check_path(name, f"{where}.file_name")
    return Record(image_id, split, name, folder=folder.group(1) if folder else "")


def load_image_info(path: pathlib.Path, faults: Faults | None = None) -> list[Record]:
    """Read the images of a COCO file without looking for captions, as test records.

    COCO's `image_info_test2014.json` is such a file.
    """
    images = field(read_json(path, "COCO image infos"), "images", list, f"{path}: top level")
    places = ((f"{path}: images[{n}]", image) for n, image in enumerate(images))
    entries = ((where, lambda i=image, w=where: _image(i, w, "test")) for where, image in places)
    return collect(entries, path, faults or Faults())["test"]


def read_id_list(path: pathlib.Path) -> list[ImageId]:
    """Read a plain list of images, one a line.

    The last word of a line counts: an id (`391895`), or a picture's name, of which
    `image_id_from_filename` makes the id (`val2014/COCO_val2014_000000391895.jpg`).

    Raises:
        DataError: the file is missing, empty or not UTF-8, or an image is listed twice.
    """
    ids = [
        image_id_from_filename(line.split()[-1])
        if line.split()[-1].count(".")
        else line.split()[-1]
        for line in read_lines(path, "one image id or file name a line")
        if line.split()
    ]
    ids = [checked_id(image_id, f"{path}") for image_id in ids]
    seen: set[ImageId] = set()
    for image_id in ids:
        if image_id in seen:
            raise DataError(f"{path}: image {image_id!r} is listed twice")
        seen.add(image_id)
    return ids


def check_disjoint(lists: Mapping[str, Iterable[ImageId]]) -> None:
    """Raise a DataError when two splits list the same image."""
    where: dict[ImageId, str] = {}
    for split, ids in lists.items():
        for image_id in ids:
            if where.setdefault(image_id, split) != split:
                other = where[image_id]
                raise DataError(f"image {image_id!r} is listed for {other} and for {split}")


def official_captions(name: str) -> bytes:
    """One of the `OFFICIAL` annotation files, out of the installed pycocoevalcap.

    Raises:
        DataError: this release of pycocoevalcap does not carry it.
    """
    import pycocoevalcap

    jar = pathlib.Path(next(iter(pycocoevalcap.__path__)), "spice", "spice-1.0.jar")
    try:
        with zipfile.ZipFile(jar) as archive:
            return archive.read(f"coco/annotations/{name}")
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{jar}: does not hold {name}: {error}") from None


def to_karpathy(splits: Splits, dataset: str) -> dict[str, Any]:
    """The Karpathy split JSON that holds `splits`, sentences with `tokens` and `raw`."""
    images = []
    for name in SPLITS:
        for record in splits[name]:
            pairs = zip(record.captions, record.raw, strict=True)
            image = {
                "filename": record.filename,
                "filepath": record.folder,
                "cocoid": record.image_id,
                "split": name,
                "sentences": [{"tokens": text.split(), "raw": raw} for text, raw in pairs],
            }
            images.append(image)
    return {"dataset": dataset, "images": images}
