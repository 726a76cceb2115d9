"""Karpathy split JSON: images, their splits and captions.

Format: `{"images": [{"filename", "split", "sentences": [{"tokens", "raw"}], "cocoid"?}]}`, from
Karpathy & Fei-Fei, "Deep Visual-Semantic Alignments for Generating Image Descriptions" (2015).
"""

import dataclasses
import importlib.resources
import lzma
import os
from typing import Any

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
    check_text,
    checked_id,
    entries,
    field,
)
from sparsecap_jax.errors import DataError
from sparsecap_jax.files import read_json
from sparsecap_jax.text import normalize

# `restval`: the images of COCO val2014 that are in neither Karpathy val nor test.
_SPLIT_NAMES = {"train": "train", "restval": "train", "val": "val", "test": "test"}


def karpathy_ids() -> dict[str, list[int]]:
    """Return the COCO ids of Karpathy's val and test images, 5,000 each; all others are train."""
    folder = importlib.resources.files("sparsecap_jax.data")
    packed = {split: folder / f"karpathy_{split}.txt.xz" for split in ("val", "test")}
    return {
        split: [int(line) for line in lzma.decompress(file.read_bytes()).split()]
        for split, file in packed.items()
    }


def load_karpathy(
    path: str | os.PathLike, *, text: str = "tokens", faults: Faults | None = None
) -> Splits:
    """Read a Karpathy split JSON, records in file order; `restval` is in train.

    Blank captions are left out, with one logged warning that counts them.

    Args:
        path: the JSON file.
        text: what `Record.captions` holds: "tokens", the split's own tokens joined by blanks (what
            the reference trains on; lower case, no punctuation), or "raw", the captions as written.
        faults: what happens to bad images and captions; None stops at the first one.

    Raises:
        DataError: missing or unreadable file, broken JSON, wrong shape, unknown split name, an
            image without captions, an image id that occurs twice, a path out of the image folder.
        ConfigError: unknown `text`.
    """
    collector = Collector(path, text, faults)

    def parse(image: Any, where: str) -> Record:
        record = _parse_bare(image, where)
        sentences = enumerate(field(image, "sentences", list, where))
        places = ((f"{where}.sentences[{n}]", sentence) for n, sentence in sentences)
        pairs = collector.parsed(places, lambda s, place: _parse_sentence(s, place, text))
        return dataclasses.replace(record, **collector.captions(pairs, where))

    return collector.collect(_images(path), parse)


def split_ids(path: str | os.PathLike) -> dict[str, list[ImageId]]:
    """Return image ids by split; errors as in `load_karpathy`, but captions may be absent."""
    splits = Collector(path).collect(_images(path), _parse_bare)
    return {name: [record.image_id for record in records] for name, records in splits.items()}


def to_karpathy(splits: Splits, dataset: str) -> dict[str, Any]:
    """Return the Karpathy split JSON that holds `splits`, sentences with `tokens` and `raw`."""
    images = [
        {
            "filename": record.filename,
            "filepath": record.folder,
            "cocoid": record.image_id,
            "split": name,
            "sentences": [
                {"tokens": text.split(), "raw": raw}
                for text, raw in zip(record.captions, record.raw, strict=True)
            ],
        }
        for name in SPLITS
        for record in splits[name]
    ]
    return {"dataset": dataset, "images": images}


def _images(path: str | os.PathLike):
    return entries(read_json(path, "a Karpathy split JSON"), "images", path)


def _parse_sentence(sentence: Any, where: str, text: str) -> tuple[str, str]:
    """Return the caption to train on and the raw caption of one entry of "sentences"."""
    if text == "raw":
        raw = caption = field(sentence, "raw", str, where)
    else:
        tokens = field(sentence, "tokens", list, where)
        if not all(isinstance(token, str) for token in tokens):
            raise DataError(f"{where}.tokens: expected a list of strings, found {tokens!r:.80}")
        caption = normalize(" ".join(tokens))
        raw = field(sentence, "raw", str, where) if "raw" in sentence else caption
    return check_text(caption, f"{where}.tokens"), check_text(raw, f"{where}.raw")


def _parse_bare(image: Any, where: str) -> Record:
    """Return the record of one entry of "images", without captions."""
    split = check_split(image, _SPLIT_NAMES, where)
    filename = field(image, "filename", str, where)
    folder = field(image, "filepath", str, where) if "filepath" in image else ""
    if "cocoid" in image:
        image_id = checked_id(image["cocoid"], f"{where}.cocoid")
    else:
        image_id = check_filename(filename, where)
    filename = check_path(filename, f"{where}.filename")
    folder = check_path(folder, f"{where}.filepath")
    return Record(image_id, split, filename, folder=folder)
