"""Write the two result files that COCO's evaluation server expects.

sparsecap prepare_data coco_server --captions=a.json --name=ORT --output=out --test_ids=FILE

The captions (of `sparsecap caption` or `evaluate`; several files may be given) must cover all of
val2014, and all of test2014 as --test_info (image_info_test2014.json) or --test_ids lists it.
Writes captions_val2014_NAME_results.json and captions_test2014_NAME_results.json.
"""

import json
import pathlib
import re
from collections.abc import Hashable

from absl import flags

from sparsecap_jax.data.caption_files import (
    OFFICIAL,
    load_image_info,
    official_captions,
    read_id_list,
)
from sparsecap_jax.errors import ConfigError, DataError
from sparsecap_jax.evaluation.caption_files import load_captions
from sparsecap_jax.files import write_json
from sparsecap_jax.text import counted


def define() -> None:
    """Define the flags."""
    flags.DEFINE_multi_string("captions", None, "COCO results; may be repeated.", required=True)
    flags.DEFINE_string("name", None, "Name of the method, in the file names.", required=True)
    flags.DEFINE_string("output", None, "Folder to write to.", required=True)
    flags.DEFINE_string("test_info", None, "image_info_test2014.json.")
    flags.DEFINE_string("test_ids", None, "List of the test2014 images.")
    flags.mark_flags_as_mutual_exclusive(["test_info", "test_ids"], required=True)


def run(args: flags.FlagValues) -> None:
    """Write both files; ConfigError for a faulty name, DataError where captions are missing."""
    if not re.fullmatch(r"[A-Za-z0-9.-]+", args.name):
        raise ConfigError(f"--name: expected letters, digits, '.' and '-', found {args.name!r}")
    captions: dict[Hashable, str] = {}
    for path in args.captions:
        captions |= load_captions(path)
    val = [image["id"] for image in json.loads(official_captions(OFFICIAL[1]))["images"]]
    if args.test_info:
        test = [record.image_id for record in load_image_info(pathlib.Path(args.test_info))]
    else:
        test = read_id_list(pathlib.Path(args.test_ids))
    images = {"val2014": val, "test2014": test}
    for split, ids in images.items():
        missing = [image_id for image_id in ids if image_id not in captions]
        if missing:
            shown = ", ".join(map(str, missing[:5]))
            raise DataError(f"{split}: no caption of {len(missing)} of {len(ids)} images: {shown}")
    for split, ids in images.items():
        path = pathlib.Path(args.output, f"captions_{split}_{args.name}_results.json")
        write_json(path, [{"image_id": i, "caption": captions[i]} for i in ids], indent=None)
        print(f"wrote {path}: {counted(len(ids), 'caption')}")
