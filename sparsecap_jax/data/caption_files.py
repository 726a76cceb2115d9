"""Readers of the caption files of Flickr8k, of InstaPIC-1.1M and of folders of one's own photos."""

import dataclasses
import hashlib
import itertools
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

from sparsecap_jax.data.coco_json import check_disjoint, read_id_list
from sparsecap_jax.data.records import (
    SPLITS,
    Collector,
    Faults,
    ImageId,
    Record,
    Splits,
    check_filename,
    check_path,
    check_split,
    entries,
    field,
    image_id_from_filename,
    read_lines,
)
from sparsecap_jax.errors import DataError
from sparsecap_jax.files import read_json

VAL_POSTS = 2000
_LISTS = {"train": ("train",), "val": ("dev", "val"), "test": ("test",)}
_PHOTO_SPLITS = {"train": "train", "val": "val", "dev": "val", "test": "test"}
_UNUSED = ("", "unsplit")


def load_photo_folder(
    path: pathlib.Path, *, text: str = "tokens", faults: Faults | None = None
) -> Splits:
    """Read `{"images": [{"filename", "split", "captions": [text]}]}`.

    Splits are train, val (or dev) and test; images whose split is "unsplit" or "" are left out and
    counted in the log. An image of the test split may go without captions.

    `text` and `faults` are those of `records.Collector`.

    Raises:
        DataError: the file is missing, broken or of another form, a photo comes twice, lacks
            captions, or lies out of the folder.
    """
    collector = Collector(path, text, faults or Faults(unit="images"))
    unused = []

    def parse(image: Any, where: str) -> Record | None:
        if field(image, "split", str, where) in _UNUSED:
            unused.append(where)
            return None
        split = check_split(image, _PHOTO_SPLITS, where)
        name = check_path(field(image, "filename", str, where), f"{where}.filename")
        image_id = check_filename(name, where)
        texts = field(image, "captions", list, where)
        texts = [(f"{where}.captions[{n}]", caption) for n, caption in enumerate(texts)]
        for place, caption in texts:
            if not isinstance(caption, str):
                raise DataError(f"{place}: expected a string, found {caption!r:.80}")
        if split == "test" and not texts:
            return Record(image_id, split, name)
        pairs = [collector.pair(caption, place) for place, caption in texts]
        return Record(image_id, split, name, **collector.captions(pairs, where))

    images = entries(read_json(path, 'captions.json with "images"'), "images", path)
    splits = collector.collect(images, parse)
    if unused:
        logging.getLogger(__name__).info("%s: %d images are in no split", path, len(unused))
    return splits


def load_flickr_tokens(
    directory: pathlib.Path, *, text: str = "tokens", faults: Faults | None = None
) -> Splits:
    """Read Flickr8k as its authors published it: a token file and three lists of pictures.

    Lines of `*.token` or `*.token.txt` are `NAME.jpg#NUMBER<tab>caption`. Lists are named
    `*trainImages*`, `*devImages*` (or `*valImages*`) and `*testImages*`; pictures in none of them
    are left out. Flickr30k's `results_20130124.token` has the same form, but its authors publish
    no split: use Karpathy's JSON, or lists of one's own.

    Raises:
        DataError: files are missing, a line is malformed, a list names a picture without captions,
            or two lists name the same one.
    """
    files = sorted({*directory.glob("*.token"), *directory.glob("*.token.txt")})
    files = [path for path in files if "lemma" not in path.name]
    if len(files) != 1:
        raise DataError(f"{directory}: {len(files)} files *.token.txt; expected one")
    path = files[0]
    collector = Collector(path, text, faults)
    lists = {split: _read_list(directory, split) for split in SPLITS}
    check_disjoint(lists)
    captions, names = _read_tokens(path, collector)

    def parse(entry: tuple[str, ImageId], where: str) -> Record:
        split, image_id = entry
        texts = collector.captions(captions.get(image_id, ()), where)
        return Record(image_id, split, names[image_id], **texts)

    places = ((f"{path}: {i}", (split, i)) for split, ids in lists.items() for i in ids)
    return collector.collect(places, parse)


def _read_tokens(path: pathlib.Path, collector: Collector):
    """Return captions and file names by image id."""
    captions: dict[ImageId, list[tuple[str, str]]] = {}
    names: dict[ImageId, str] = {}
    for number, line in enumerate(read_lines(path, "NAME.jpg#NUMBER<tab>caption"), start=1):
        where = f"{path}: line {number}"
        try:
            name, tab, caption = line.partition("\t")
            name, hash_mark, _ = name.rpartition("#")
            if not (tab and hash_mark and name):
                raise DataError(
                    f"{where}: expected NAME.jpg#NUMBER<tab>caption, found {line!r:.60}"
                )
            image_id = image_id_from_filename(check_path(name, where))
            captions.setdefault(image_id, []).append(collector.pair(caption, where))
            names[image_id] = name
        except DataError as error:
            collector.faults.add(error)
    return captions, names


def _read_list(directory: pathlib.Path, split: str) -> list[ImageId]:
    for name in _LISTS[split]:
        files = sorted(directory.glob(f"*{name}Images*"))
        if files:
            return read_id_list(files[0])
    raise DataError(
        f"{directory}: no list of {split} pictures; expected *{_LISTS[split][0]}Images*"
    )


def load_instapic(
    directory: pathlib.Path,
    *,
    test: str = "insta-caption-test1.json",
    text: str = "tokens",
    faults: Faults | None = None,
) -> Splits:
    """Read InstaPIC-1.1M, captions of Instagram posts, in `directory` or `directory/json`.

    `insta-caption-{train,test1,test2}.json` hold `{user: {post: {"caption": text}}}`; picture and
    features of a post are named `USER_@_POST`. test1 has users of its own, test2 posts of users
    that are in train. There is no published validation split: the `VAL_POSTS` posts of train (a
    tenth of it, if that is less) whose ids have the smallest SHA-256 are it, in any order of the
    file.

    `test` names the file of the test split; `text` and `faults` are those of `records.Collector`.

    Raises:
        DataError: a file is missing or of another form, a post has no words, or comes twice.

    References:
        Park, Kim, Kim, "Attend to You: Personalized Image Captioning with Context Sequence Memory
        Networks" (2017).
    """
    collector = Collector(directory, text, faults or Faults(unit="posts"))
    train, test = _find(directory, "insta-caption-train.json"), _find(directory, test)

    def parse(entry: Any, where: str) -> Record:
        name, post, split = entry
        pair = collector.pair(field(post, "caption", str, where), where)
        texts = collector.captions([pair], where)
        return Record(check_path(name, where), split, name, **texts)

    places = itertools.chain(_posts(train, "train"), _posts(test, "test"))
    splits = collector.collect(places, parse)
    ranked = sorted(splits["train"], key=_rank)
    chosen = {record.image_id for record in ranked[: min(VAL_POSTS, len(ranked) // 10)]}
    val = [dataclasses.replace(r, split="val") for r in splits["train"] if r.image_id in chosen]
    kept = [record for record in splits["train"] if record.image_id not in chosen]
    return {"train": kept, "val": val, "test": splits["test"]}


def _find(directory: pathlib.Path, name: str) -> pathlib.Path:
    for path in (directory / name, directory / "json" / name):
        if path.is_file():
            return path
    raise DataError(f"{directory}: holds neither {name} nor json/{name}")


def _posts(path: pathlib.Path, split: str) -> Iterator[tuple[str, Any]]:
    """Yield (place, (name, post, split)) of every post in a file."""
    content = read_json(path, "a caption list")
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected {{user: {{post: ...}}}}, found {content!r:.60}")
    for user, posts in content.items():
        if not isinstance(posts, dict):
            raise DataError(f"{path}: {user}: expected {{post: ...}}, found {posts!r:.60}")
        for name, post in posts.items():
            yield f"{path}: {user}.{name}", (f"{user}_@_{name}", post, split)


def _rank(record: Record) -> bytes:
    return hashlib.sha256(str(record.image_id).encode()).digest()
