"""Readers of caption files: COCO's own, Flickr8k's, InstaPIC-1.1M's, folders of one's own photos.

COCO's are annotations, image infos, and id lists that cut them into splits.
"""

import csv
import dataclasses
import hashlib
import itertools
import logging
import pathlib
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sparsecap_jax.data.records import (
    SPLITS,
    Collector,
    Faults,
    ImageId,
    Record,
    Source,
    Splits,
    check_filename,
    check_path,
    check_split,
    check_text,
    checked_id,
    data_error,
    entries,
    field,
    image_id_from_filename,
    normalize_id,
    read_lines,
)
from sparsecap_jax.errors import DataError
from sparsecap_jax.files import read_json

OFFICIAL = ("captions_train2014.json", "captions_val2014.json")
VAL_POSTS = 2000
_KAGGLE = "captions.txt"
_COCO_FOLDER = re.compile(r"COCO_([a-z]+[0-9]{4})_")
_LISTS = {"train": ("train",), "val": ("dev", "val"), "test": ("test",)}
_PHOTO_SPLITS = {"train": "train", "val": "val", "dev": "val", "test": "test"}


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
        text: see `Source`.
        ids: image ids by split, which cut the images anew: listed ones go where the list says, all
            others to "train" (unless "train" is listed too: then they are left out).
        faults: what happens to bad images and captions; None stops at the first one.

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
                captions = _coco_captions(content, path, collector)
                for where, image in entries(content, "images", path):
                    yield where, (image, split, captions)

    def parse(entry: Any, where: str) -> Record | None:
        image, split, captions = entry
        record = _coco_image(image, where, split)
        texts = collector.captions(captions.get(record.image_id, ()), where)
        if ids:
            split = chosen.get(record.image_id, others)
        return dataclasses.replace(record, split=split, **texts) if split else None

    splits = collector.collect(places(), parse)
    present = {record.image_id for records in splits.values() for record in records}
    missing = [image_id for image_id in chosen if image_id not in present]
    if missing:
        shown = ", ".join(map(str, missing[:5]))
        message = f"{source}: {len(missing)} ids of the split lists are not there: {shown}"
        collector.faults.add(DataError(message))
    return splits


def _coco_captions(content: Any, path: Any, collector: Collector):
    """Return the captions of one file by image id."""
    captions: dict[ImageId, list[tuple[str, str]]] = {}

    def parse(entry: Any, where: str) -> tuple[ImageId, tuple[str, str]]:
        image_id = normalize_id(field(entry, "image_id", int | str, where))
        return image_id, collector.pair(field(entry, "caption", str, where), where)

    for image_id, pair in collector.parsed(entries(content, "annotations", path), parse):
        captions.setdefault(image_id, []).append(pair)
    return captions


def _coco_image(image: Any, where: str, split: str = "test") -> Record:
    """Return the record of one entry of "images", without captions."""
    image_id = checked_id(field(image, "id", int | str, where), f"{where}.id")
    name = field({"file_name": "", **image}, "file_name", str, where)
    name = check_path(name, f"{where}.file_name")
    folder = _COCO_FOLDER.match(name)
    return Record(image_id, split, name, folder=folder.group(1) if folder else "")


def load_image_info(path: pathlib.Path, faults: Faults | None = None) -> list[Record]:
    """Read the images of a COCO file without looking for captions, as test records.

    COCO's `image_info_test2014.json` is such a file.
    """
    images = entries(read_json(path, "COCO image infos"), "images", path)
    return Collector(path, faults=faults).collect(images, _coco_image)["test"]


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


def check_disjoint(lists: Mapping[str, Iterable[ImageId]], source: Any) -> None:
    """Raise a DataError when two splits list the same image; `source` is the lists' folder."""
    where: dict[ImageId, str] = {}
    for split, ids in lists.items():
        for image_id in ids:
            other = where.setdefault(image_id, split)
            if other != split:
                raise DataError(
                    f"{source}: image {image_id!r} is listed for {other} and for {split}"
                )


def official_captions(name: str) -> bytes:
    """Return an `OFFICIAL` annotation file out of pycocoevalcap; DataError where it has none."""
    import pycocoevalcap

    jar = pathlib.Path(next(iter(pycocoevalcap.__path__)), "spice", "spice-1.0.jar")
    problem = f"{jar}: does not hold {name}"
    with data_error(problem, OSError, KeyError, zipfile.BadZipFile), zipfile.ZipFile(jar) as file:
        return file.read(f"coco/annotations/{name}")


def load_photo_folder(source: Source) -> Splits:
    """Read `{"images": [{"filename", "split", "captions": [text]}]}`, in captions.json usually.

    Splits are train, val (or dev) and test; images of split "unsplit", "unassigned" or ""
    are left out and counted in the log. An image of the test split may go without captions.

    Raises:
        DataError: the file is missing, broken or of another form, a photo comes twice, lacks
            captions, or lies out of the folder.
    """
    path = source.directory / (source.split_json or "captions.json")
    collector = Collector(path, source.text, source.faults)
    unused = []

    def parse(image: Any, where: str) -> Record | None:
        if field(image, "split", str, where) in ("", "unsplit", "unassigned"):
            unused.append(where)
            return None
        split = check_split(image, _PHOTO_SPLITS, where)
        name = check_path(field(image, "filename", str, where), f"{where}.filename")
        image_id = check_filename(name, where)
        texts = field(image, "captions", list, where)
        if split == "test" and not texts:
            return Record(image_id, split, name)
        places = ((f"{where}.captions[{n}]", caption) for n, caption in enumerate(texts))
        pairs = collector.parsed(places, collector.pair)
        return Record(image_id, split, name, **collector.captions(pairs, where))

    images = entries(read_json(path, 'captions.json with "images"'), "images", path)
    splits = collector.collect(images, parse)
    if unused:
        logging.getLogger(__name__).info("%s: %d images are in no split", path, len(unused))
    return splits


def load_flickr_tokens(source: Source) -> Splits:
    """Read Flickr8k: a file of captions, and three lists of pictures.

    Lines of `*.token` or `*.token.txt`, which its authors published, are
    `NAME.jpg#NUMBER<tab>caption`. Without them Kaggle's `captions.txt` is read: CSV with the
    header `image,caption`. Lists are named `*trainImages*`, `*devImages*` (or `*valImages*`) and
    `*testImages*`; pictures in none of them are left out. Flickr30k's `results_20130124.token` has
    the same form, but its authors publish no split: use Karpathy's JSON, or lists of one's own.

    Raises:
        DataError: files are missing, a line is malformed, a list names a picture without captions,
            or two lists name the same one.
    """
    directory = source.directory
    named = {*directory.glob("*.token"), *directory.glob("*.token.txt")}
    files = [path for path in named if "lemma" not in path.name]
    files = files or [*directory.glob(_KAGGLE)]
    if len(files) != 1:
        expected = f"expected one, or Kaggle's {_KAGGLE}"
        raise DataError(f"{directory}: {len(files)} files *.token.txt; {expected}")
    path = files[0]
    collector = Collector(path, source.text, source.faults)
    lists = {split: _read_list(directory, split) for split in SPLITS}
    check_disjoint(lists, directory)
    captions, names = _read_tokens(path, collector)

    def parse(entry: tuple[str, ImageId], where: str) -> Record:
        split, image_id = entry
        texts = collector.captions(captions.get(image_id, ()), where)
        return Record(image_id, split, names[image_id], **texts)

    places = ((f"{path}: {i}", (split, i)) for split, ids in lists.items() for i in ids)
    return collector.collect(places, parse)


def _read_tokens(path: pathlib.Path, collector: Collector):
    """Return captions and file names by image id."""
    header, form = "image,caption", "NAME.jpg#NUMBER<tab>caption"
    captions: dict[ImageId, list[tuple[str, str]]] = {}
    names: dict[ImageId, str] = {}
    lines = read_lines(path, form, "surrogateescape")  # `parse` finds bad ones
    places = [(f"{path}: line {number}", line) for number, line in enumerate(lines, start=1)]
    if path.name == _KAGGLE:
        if lines[0] != header:
            raise DataError(f"{path}: line 1: expected {header}, found {lines[0]!r:.60}")
        form, places = header, places[1:]

    def parse(line: str, where: str) -> tuple[str, tuple[str, str]]:
        check_text(line, where)
        if form == header:
            with data_error(f"{where}: expected {form}", csv.Error):
                name, *caption = next(csv.reader([line], strict=True)) or [""]
        else:
            name, *caption = line.split("\t", 1)
            name = name.rpartition("#")[0]
        if not name or len(caption) != 1:
            raise DataError(f"{where}: expected {form}, found {line!r:.60}")
        return check_path(name, where), collector.pair(caption[0], where)

    for name, pair in collector.parsed(places, parse):
        image_id = image_id_from_filename(name)
        captions.setdefault(image_id, []).append(pair)
        names[image_id] = name
    return captions, names


def _read_list(directory: pathlib.Path, split: str) -> list[ImageId]:
    patterns = [f"*{name}Images*" for name in _LISTS[split]]
    for pattern in patterns:
        for path in sorted(directory.glob(pattern)):
            return read_id_list(path)
    raise DataError(
        f"{directory}: no list of {split} pictures; expected {patterns[0]} (of Flickr8k_text.zip)"
    )


def load_instapic(source: Source) -> Splits:
    """Read InstaPIC-1.1M, captions of Instagram posts, in the folder or its folder `json`.

    `insta-caption-{train,test1,test2}.json` hold `{user: {post: {"caption": text}}}`; picture and
    features of a post are named `USER_@_POST`. test1 has users of its own, test2 posts of users
    that are in train; `source.split_json` names the test file, test1 if it is "". There is no
    published validation split: the `VAL_POSTS` posts of train (a tenth of it, if that is less)
    whose ids have the smallest SHA-256 are it, in any order of the file.

    Raises:
        DataError: a file is missing or of another form, a post has no words, or comes twice.

    References:
        Park, Kim, Kim, "Attend to You: Personalized Image Captioning with Context Sequence Memory
        Networks" (2017).
    """
    collector = Collector(source.directory, source.text, source.faults)
    test = source.split_json or "insta-caption-test1.json"
    files = {"train": _find(source.directory, "insta-caption-train.json")}
    files["test"] = _find(source.directory, test)

    def parse(entry: Any, where: str) -> Record:
        name, post, split = entry
        pair = collector.pair(field(post, "caption", str, where), where)
        return Record(check_path(name, where), split, name, **collector.captions([pair], where))

    places = itertools.chain.from_iterable(
        _posts(path, split, collector) for split, path in files.items()
    )
    splits = collector.collect(places, parse)
    train = splits["train"]
    digests = {r.image_id: hashlib.sha256(str(r.image_id).encode()).digest() for r in train}
    chosen = {*sorted(digests, key=digests.__getitem__)[: min(VAL_POSTS, len(train) // 10)]}
    splits["val"] = [dataclasses.replace(r, split="val") for r in train if r.image_id in chosen]
    splits["train"] = [record for record in train if record.image_id not in chosen]
    return splits


def _find(directory: pathlib.Path, name: str) -> pathlib.Path:
    for path in (directory / name, directory / "json" / name):
        if path.is_file():
            return path
    raise DataError(f"{directory}: holds neither {name} nor json/{name}")


def _posts(path: pathlib.Path, split: str, collector: Collector) -> Iterator[tuple[str, Any]]:
    """Yield (place, (name, post, split)) of every post in a file."""
    content = read_json(path, "a caption list")
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected {{user: {{post: ...}}}}, found {content!r:.60}")
    for user, posts in content.items():
        if isinstance(posts, dict):
            for name, post in posts.items():
                yield f"{path}: {user}.{name}", (f"{user}_@_{name}", post, split)
        else:
            message = f"{path}: {user}: expected {{post: ...}}, found {posts!r:.60}"
            collector.faults.add(DataError(message))
