r"""Turn features of any known format into ArrayRecord, which is read at random.

python launch/prepare_data.py convert --features=trainval.tsv --output=data/coco/features \
    --boxes --dtype=float16

A stopped command continues when it is run again. The output folder holds a manifest with checksums,
which `inspect --verify` compares. Models that need boxes need --boxes here too.
"""

import argparse

from sparsecap_jax.data.features import IndexedStore
from sparsecap_jax.data.stores import STORES, open_store
from sparsecap_jax.data.stores.array_records import DTYPES
from sparsecap_jax.data.stores.convert import convert


def define_features(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `open_features`, except for --boxes."""
    parser.add_argument("--features", required=True, help="File or folder of features.")
    parser.add_argument(
        "--format",
        default="auto",
        choices=["auto", *STORES],
        help="Its format; detected by default.",
    )
    parser.add_argument("--feature_size", type=int, default=2048, help="Width of the features.")
    parser.add_argument(
        "--image_sizes", default="", help="JSON or folder of image sizes, for boxes in pixels."
    )


def open_features(args: argparse.Namespace) -> IndexedStore:
    """Open the store that the arguments name."""
    return open_store(
        args.features, args.feature_size, args.boxes, sizes=args.image_sizes, format=args.format
    )


def define(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    define_features(parser)
    parser.add_argument("--output", required=True, help="Folder to write to.")
    parser.add_argument("--boxes", action="store_true", help="Convert boxes too.")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="Of the features.")
    parser.add_argument("--shard_size", type=int, default=500, help="Images per file.")
    parser.add_argument(
        "--skip_bad", action="store_true", help="Leave out bad images, counted in the log."
    )


def run(args: argparse.Namespace) -> None:
    """Convert; ConfigError for a folder of other content, DataError for an unreadable image."""
    options = {"dtype": args.dtype, "shard_size": args.shard_size, "skip_bad": args.skip_bad}
    convert(open_features(args), args.output, **options)
