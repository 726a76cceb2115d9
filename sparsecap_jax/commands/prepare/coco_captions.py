"""Lay out COCO's 616,767 captions, which come with pycocoevalcap: nothing is downloaded.

sparsecap prepare_data coco_captions --output=data/coco

Writes, below the output folder:
  annotations/captions_{train,val}2014.json  the official files
  dataset_coco.json                          the split, in Karpathy's form
  captions_train.txt                         one training caption a line, for tokenizers
  references_{val,test}.json                 {image id: [captions]}, for `sparsecap evaluate`

The split is Karpathy's, whose lists come with the package. Another one comes from a Karpathy JSON
(--split_json: its ids and split names are used) or from plain id lists, one id or file name a line;
images in no list are for training. With --official_split, val2014 is the validation split.
"""

import pathlib
from collections.abc import Mapping, Sequence

from absl import flags

from sparsecap_jax.data.caption_files import (
    OFFICIAL,
    check_disjoint,
    load_coco_json,
    official_captions,
    read_id_list,
)
from sparsecap_jax.data.karpathy import karpathy_ids, split_ids, to_karpathy
from sparsecap_jax.data.records import SPLITS
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.files import write_atomically, write_json
from sparsecap_jax.text import counted


def define() -> None:
    """Define the flags."""
    flags.DEFINE_string("output", None, "Folder to write to.", required=True)
    flags.DEFINE_string("split_json", None, "Karpathy JSON that cuts it.")
    for split in SPLITS:
        flags.DEFINE_string(f"{split}_ids", None, f"List of the images of {split}.")
    flags.DEFINE_bool("official_split", False, "Take val2014 for validation, nothing for test.")
    flags.DEFINE_bool("raw_captions", False, "Text for tokenizers: captions as written, not words.")


def run(args: flags.FlagValues) -> None:
    """Write the files and print their content; an error where split lists do not fit COCO."""
    files = {split: args[f"{split}_ids"].value for split in SPLITS}
    lists = {split: read_id_list(pathlib.Path(path)) for split, path in files.items() if path}
    if bool(args.split_json) + bool(lists) + args.official_split > 1:
        raise ConfigError("expected one of --split_json, id lists and --official_split")
    check_disjoint(lists, "the lists")
    ids: Mapping[str, Sequence[int | str]]
    ids = split_ids(args.split_json) if args.split_json else lists
    if not ids and not args.official_split:
        ids = karpathy_ids()
    output = pathlib.Path(args.output)
    annotations = [output / "annotations" / name for name in OFFICIAL]
    for path in annotations:
        if not path.exists():
            with write_atomically(path, "wb") as file:
                file.write(official_captions(path.name))
    paths = {"train": annotations[:1], "val": annotations[1:]}
    splits = load_coco_json(paths, text="raw" if args.raw_captions else "tokens", ids=ids)
    write_json(output / "dataset_coco.json", to_karpathy(splits, "coco"), indent=None)
    with write_atomically(output / "captions_train.txt") as file:
        for record in splits["train"]:
            file.writelines(" ".join(caption.split()) + "\n" for caption in record.captions)
    for name in ("val", "test"):
        references = {record.image_id: record.raw for record in splits[name]}
        write_json(output / f"references_{name}.json", references, indent=None)
    for name, records in splits.items():
        captions = sum(len(record.captions) for record in records)
        print(f"{name}: {counted(len(records), 'image')}, {counted(captions, 'caption')}")
    print(f"wrote {output}/dataset_coco.json, captions_train.txt, references_{{val,test}}.json")
