"""Flickr8k as its authors published it: a token file and three lists of pictures."""

import pathlib

from sparsecap_jax.data.coco_json import check_disjoint, read_id_list
from sparsecap_jax.data.fields import Faults, check_path, read_lines
from sparsecap_jax.data.records import (
    SPLITS,
    Blanks,
    ImageId,
    Record,
    caption_pair,
    check_text_option,
    collect,
    image_id_from_filename,
)
from sparsecap_jax.errors import DataError

_LISTS = {"train": ("train",), "val": ("dev", "val"), "test": ("test",)}


def load_flickr_tokens(
    directory: pathlib.Path, *, text: str = "tokens", faults: Faults | None = None
) -> dict[str, list[Record]]:
    """Read `*.token` or `*.token.txt` (`NAME.jpg#NUMBER<tab>caption`) and the lists of pictures.

    Lists are named `*trainImages*`, `*devImages*` (or `*valImages*`) and `*testImages*`; pictures
    in none of them are left out. Flickr30k's `results_20130124.token` has the same form, but its
    authors publish no split: use Karpathy's JSON, or lists of one's own.

    Raises:
        DataError: files are missing, a line is malformed, a list names a picture without captions,
            or two lists name the same one.
    """
    check_text_option(text)
    blanks, faults = Blanks(), faults or Faults()
    found = sorted({*directory.glob("*.token"), *directory.glob("*.token.txt")})
    found = [path for path in found if "lemma" not in path.name]
    if len(found) != 1:
        raise DataError(f"{directory}: {len(found)} files *.token.txt; expected one")
    path = found[0]
    lists = {split: _read_list(directory, split) for split in SPLITS}
    check_disjoint(lists)
    captions, names = _read_tokens(path, text, faults)
    places = ((split, image_id) for split, ids in lists.items() for image_id in ids)

    def parse(split: str, image_id: ImageId) -> Record:
        where = f"{path}: {image_id}"
        kept, raws = blanks.drop(captions.get(image_id, ()), where)
        return Record(image_id, split, names[image_id], kept, raws)

    entries = ((f"{path}: {i}", lambda s=split, i=i: parse(s, i)) for split, i in places)
    splits = collect(entries, path, faults)
    blanks.report(path)
    return splits


def _read_tokens(path: pathlib.Path, text: str, faults: Faults):
    """Captions and file names by image id."""
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
            captions.setdefault(image_id, []).append(caption_pair(caption, text, where))
            names[image_id] = name
        except DataError as error:
            faults.add(error)
    return captions, names


def _read_list(directory: pathlib.Path, split: str) -> list[ImageId]:
    for name in _LISTS[split]:
        found = sorted(directory.glob(f"*{name}Images*"))
        if found:
            return read_id_list(found[0])
    raise DataError(
        f"{directory}: no list of {split} pictures; expected *{_LISTS[split][0]}Images*"
    )
