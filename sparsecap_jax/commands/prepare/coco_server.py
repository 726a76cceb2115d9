"""Write the two result files that COCO's evaluation server expects.

python launch/prepare_data.py coco_server --captions=captions.json --name=ORT --output=results

The captions (of launch/caption.py or evaluate.py; several files may be given) must cover all of
val2014, and all of test2014 as --test_info (image_info_test2014.json) or --test_ids lists it.
Writes captions_val2014_NAME_results.json and captions_test2014_NAME_results.json.
"""

import argparse
import json
import pathlib
import re
from collections.abc import Sequence

from sparsecap_jax.data.caption_files import (
    OFFICIAL,
    load_image_info,
    official_captions,
    read_id_list,
)
from sparsecap_jax.data.records import ImageId
from sparsecap_jax.errors import ConfigError, DataError
from sparsecap_jax.evaluation.caption_files import load_captions
from sparsecap_jax.files import write_atomically


def define(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--captions", required=True, action="append", help="COCO results; may be repeated."
    )
    parser.add_argument("--name", required=True, help="Name of the method, in the file names.")
    parser.add_argument("--output", required=True, type=pathlib.Path, help="Folder to write to.")
    test = parser.add_mutually_exclusive_group(required=True)
    test.add_argument("--test_info", type=pathlib.Path, help="image_info_test2014.json.")
    test.add_argument("--test_ids", type=pathlib.Path, help="List of the test2014 images.")


def run(args: argparse.Namespace) -> None:
    """Write both files; ConfigError for a faulty name, DataError where captions are missing."""
    if not re.fullmatch(r"[A-Za-z0-9.-]+", args.name):
        raise ConfigError(f"--name: expected letters, digits, '.' and '-', found {args.name!r}")
    captions: dict[ImageId, str] = {}
    for path in args.captions:
        captions |= load_captions(path)
    val = [image["id"] for image in json.loads(official_captions(OFFICIAL[1]))["images"]]
    if args.test_info:
        test = [record.image_id for record in load_image_info(args.test_info)]
    else:
        test = read_id_list(args.test_ids)
    files = {"val2014": _results(captions, val), "test2014": _results(captions, test)}
    for split, (results, missing) in files.items():
        if missing:
            shown = ", ".join(map(str, missing[:5]))
            total = len(results) + len(missing)
            raise DataError(f"{split}: no caption of {len(missing)} of {total} images: {shown}")
    for split, (results, _) in files.items():
        path = args.output / f"captions_{split}_{args.name}_results.json"
        with write_atomically(path) as file:
            json.dump(results, file)
        print(f"wrote {path}: {len(results):,} captions")


def _results(captions: dict[ImageId, str], ids: Sequence[ImageId]):
    """Return entries in COCO's results format, and the ids without a caption."""
    results = [{"image_id": i, "caption": captions[i]} for i in ids if i in captions]
    return results, [image_id for image_id in ids if image_id not in captions]
