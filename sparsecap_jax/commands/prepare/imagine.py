r"""Make a dataset of photos, and of captions without photos whose features are imagined.

python launch/prepare_data.py imagine --photos=data/flickr8k_1k,data/coco_photos \
    --features=features/flickr8k_1k,features/coco_photos \
    --text=flickr8k:data/flickr8k_text,karpathy:data/coco --output=data/flickr8k_mini

Photo folders hold captions.json and images/; the first one's splits are used. Text is any dataset
(`DATASETS` in sparsecap_jax/data/datasets.py): the captions of its training split, without images
that the photos hold out.
"""

import argparse
import pathlib


def define(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--photos", required=True, help="Photo folders, with commas.")
    parser.add_argument("--features", required=True, help="Their features, in the same order.")
    parser.add_argument("--text", default="", help="NAME:FOLDER of captions, with commas.")
    parser.add_argument("--feature_size", type=int, default=1280, help="Width of the features.")
    parser.add_argument("--output", required=True, help="Folder to write to.")


def run(args: argparse.Namespace) -> None:
    """Fit and write; ConfigError where the lists do not match, DataError for bad files."""
    from sparsecap_jax.data.imagined_dataset import prepare
    from sparsecap_jax.errors import ConfigError

    photos, features = (
        list(map(pathlib.Path, value.split(","))) for value in (args.photos, args.features)
    )
    if len(photos) != len(features):
        raise ConfigError(f"{len(photos)} --photos, {len(features)} --features; expected as many")
    text = [part.partition(":") for part in args.text.split(",") if part]
    for name, colon, _ in text:
        if not colon:
            raise ConfigError(f"--text: found {name!r}; expected NAME:FOLDER")
    sources = [(name, pathlib.Path(folder)) for name, _, folder in text]
    prepare(list(zip(photos, features, strict=True)), sources, args.output, args.feature_size)
