"""COCO's own files: caption annotations, image infos, and id lists that cut them into splits."""

import dataclasses
import pathlib
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sparsecap_jax.data.records import (
    Collector,
    Faults,
    ImageId,
    Record,
    Splits,
    check_path,
    checked_id,
    entries,
    field,
    image_id_from_filename,
    read_lines,
)
from sparsecap_jax.errors import DataError
from sparsecap_jax.files import read_json

OFFICIAL = ("captions_train2014.json", "captions_val2014.json")
_FOLDER = re.compile(r"COCO_([a-z]+[0-9]{4})_")


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
    source = ", ".join(str(path) for files in paths.values() for path in files)
    collector = Collector(source, text, faults)
    chosen = {image_id: split for split, listed in (ids or {}).items() for image_id in listed}
    others = None if "train" in (ids or {}) else "train"

    def places() -> Iterator[tuple[str, Any]]:
        for split, files in paths.items():
            for path in files:
                content = read_json(path, "COCO annotations")
                captions = _captions(content, path, collector)
                for where, image in entries(content, "images", path):
                    yield where, (image, split, captions)

    def parse(entry: Any, where: str) -> Record | None:
        image, split, captions = entry
        record = _image(image, where, split)
        texts = collector.captions(captions.get(image["id"], ()), where)
        if ids:
            split = chosen.get(record.image_id, others)
        return split and dataclasses.replace(record, split=split, **texts)

    splits = collector.collect(places(), parse)
    present = {record.image_id for records in splits.values() for record in records}
    missing = [image_id for image_id in chosen if image_id not in present]
    if missing:
        shown = ", ".join(map(str, missing[:5]))
        message = f"{source}: {len(missing)} ids of the split lists are not there: {shown}"
        collector.faults.add(DataError(message))
    return splits


def _captions(content: Any, path: Any, collector: Collector) -> dict[Any, list[tuple[str, str]]]:
    """Return the captions of one file by image id."""
    captions: dict[Any, list[tuple[str, str]]] = {}
    for where, entry in entries(content, "annotations", path):
        image_id = field(entry, "image_id", int | str, where)
        pair = collector.pair(field(entry, "caption", str, where), where)
        captions.setdefault(image_id, []).append(pair)
    return captions


def _image(image: Any, where: str, split: str = "test") -> Record:
    """Return the record of one entry of "images", without captions."""
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
    images = entries(read_json(path, "COCO image infos"), "images", path)
    return Collector(path, faults=faults).collect(images, _image)["test"]


def read_id_list(path: pathlib.Path) -> list[ImageId]:
    """Read a plain list of images, one a line.

    The last word of a line counts: an id (`391895`), or a picture's name, of which
    `image_id_from_filename` makes the id (`val2014/COCO_val2014_000000391895.jpg`).

    Raises:
        DataError: the file is missing, empty or not UTF-8, or an image is listed twice.
    """
    ids: dict[ImageId, None] = {}
    for line in read_lines(path, "one image id or file name a line"):
        for name in line.split()[-1:]:
            image_id = checked_id(image_id_from_filename(name) if "." in name else name, str(path))
            if image_id in ids:
                raise DataError(f"{path}: image {image_id!r} is listed twice")
            ids[image_id] = None
    return list(ids)


def check_disjoint(lists: Mapping[str, Iterable[ImageId]]) -> None:
    """Raise a DataError when two splits list the same image."""
    where: dict[ImageId, str] = {}
    for split, ids in lists.items():
        for image_id in ids:
            other = where.setdefault(image_id, split)
            if other != split:
                raise DataError(f"image {image_id!r} is listed for {other} and for {split}")


def official_captions(name: str) -> bytes:
    """Return an `OFFICIAL` annotation file out of pycocoevalcap; DataError where it has none."""
    import pycocoevalcap

    jar = pathlib.Path(next(iter(pycocoevalcap.__path__)), "spice", "spice-1.0.jar")
    try:
        with zipfile.ZipFile(jar) as archive:
            return archive.read(f"coco/annotations/{name}")
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{jar}: does not hold {name}: {error}") from None
