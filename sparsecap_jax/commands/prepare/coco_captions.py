"""Lay out COCO's 616,767 captions, which come with pycocoevalcap: nothing is downloaded.

python launch/prepare_data.py coco_captions --output=data/coco --val_ids=FILE --test_ids=FILE

Writes, below the output folder:
  annotations/captions_{train,val}2014.json  the official files
  dataset_coco.json                          the split, in Karpathy's form
  captions_train.txt                         one training caption a line, for tokenizers
  references_{val,test}.json                 {image id: [captions]}, for evaluate.py

The split comes from a Karpathy JSON (--split_json: its ids and split names are used) or from plain
id lists, one id or file name a line; images in no list are for training. Without either, val2014 is
the validation split.
"""

import argparse
import json
import pathlib
from collections.abc import Mapping

from sparsecap_jax.data.caption_files import (
    OFFICIAL,
    check_disjoint,
    load_coco_json,
    official_captions,
    read_id_list,
)
from sparsecap_jax.data.karpathy import split_ids, to_karpathy
from sparsecap_jax.data.records import SPLITS, ImageId, Splits
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.files import write_atomically


def define(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--output", required=True, type=pathlib.Path, help="Folder to write to.")
    parser.add_argument("--split_json", type=pathlib.Path, help="Karpathy JSON that cuts it.")
    for split in SPLITS:
        parser.add_argument(f"--{split}_ids", type=pathlib.Path, help=f"Images of {split}.")
    parser.add_argument(
        "--raw_captions",
        action="store_true",
        help="Train on captions as written, not on lower-case words without punctuation.",
    )


def run(args: argparse.Namespace) -> None:
    """Write the files and print their content; an error where split lists do not fit COCO."""
    ids = _split_lists(args)
    folder = args.output / "annotations"
    for name in OFFICIAL:
        if not (folder / name).exists():
            with write_atomically(folder / name, "wb") as file:
                file.write(official_captions(name))
    paths = {"train": [folder / OFFICIAL[0]], "val": [folder / OFFICIAL[1]]}
    splits = load_coco_json(paths, text="raw" if args.raw_captions else "tokens", ids=ids)
    _write(args.output, splits)
    for name, records in splits.items():
        captions = sum(len(record.captions) for record in records)
        print(f"{name}: {len(records):,} images, {captions:,} captions")
    print(
        f"wrote {args.output}/dataset_coco.json, captions_train.txt, references_{{val,test}}.json"
    )


def _split_lists(args: argparse.Namespace) -> Mapping[str, list[ImageId]]:
    files = {split: getattr(args, f"{split}_ids") for split in SPLITS}
    files = {split: path for split, path in files.items() if path}
    if args.split_json and files:
        raise ConfigError("expected --split_json or id lists, found both")
    if args.split_json:
        return split_ids(args.split_json)
    lists = {split: read_id_list(path) for split, path in files.items()}
    check_disjoint(lists)
    return lists


def _write(output: pathlib.Path, splits: Splits) -> None:
    with write_atomically(output / "dataset_coco.json") as file:
        json.dump(to_karpathy(splits, "coco"), file, ensure_ascii=False)
    with write_atomically(output / "captions_train.txt") as file:
        for record in splits["train"]:
            file.writelines(" ".join(caption.split()) + "\n" for caption in record.captions)
    for name in ("val", "test"):
        with write_atomically(output / f"references_{name}.json") as file:
            references = {record.image_id: record.raw for record in splits[name]}
            json.dump(references, file, ensure_ascii=False)
