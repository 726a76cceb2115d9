r"""Turn features of any known format into ArrayRecord, which is read at random.

sparsecap prepare_data convert --features=trainval.tsv --output=data/coco/features \
    --boxes --dtype=float16

A stopped command continues when it is run again. The output folder holds a manifest with checksums,
which `inspect --verify` compares. Models that need boxes need --boxes here too.
"""

import pathlib

from absl import flags

from sparsecap_jax.commands.prepare import trust_entry
from sparsecap_jax.data.features import IndexedStore
from sparsecap_jax.data.stores import STORES, open_store, stated_width
from sparsecap_jax.data.stores.array_records import DTYPES
from sparsecap_jax.data.stores.convert import convert
from sparsecap_jax.locks import locked, remove_strays


def define_features() -> None:
    """Define the flags of `open_features`, except for --boxes."""
    formats = f"auto, {', '.join(STORES)}, or MODULE:NAME of your own."
    flags.DEFINE_string("features", None, "File or folder of features.", required=True)
    flags.DEFINE_string("format", "auto", f"Its format: {formats}")
    define_width()
    flags.DEFINE_string("image_sizes", "", "JSON or folder of image sizes, for boxes in pixels.")


def define_width() -> None:
    """Define the flag --feature_size, which `width_of` reads."""
    text = "Width of the features, by default as .npy and converted folders state it, else 2048."
    flags.DEFINE_integer("feature_size", None, text, lower_bound=1)


def width_of(args: flags.FlagValues, features: str | pathlib.Path, format: str = "auto") -> int:
    """Return --feature_size, or else the width that the features state."""
    return stated_width(features, format) if args.feature_size is None else args.feature_size


def open_features(args: flags.FlagValues) -> IndexedStore:
    """Open the store that the flags name."""
    trust_entry(args.format)
    width = width_of(args, args.features, args.format)
    return open_store(args.features, width, args.boxes, sizes=args.image_sizes, format=args.format)


def define() -> None:
    """Define the flags."""
    define_features()
    flags.DEFINE_string("output", None, "Folder to write to.", required=True)
    flags.DEFINE_bool("boxes", False, "Convert boxes too.")
    flags.DEFINE_enum("dtype", "float32", DTYPES, "Type of the features.")
    flags.DEFINE_integer("shard_size", 500, "Images per file.")
    flags.DEFINE_bool("skip_bad", False, "Leave out bad images, counted in the log.")


def run(args: flags.FlagValues) -> None:
    """Convert; ConfigError for a folder of other content, DataError for an unreadable image."""
    options = {"dtype": args.dtype, "shard_size": args.shard_size, "skip_bad": args.skip_bad}
    with locked(args.output):
        remove_strays(args.output, "*.json")
        convert(open_features(args), args.output, **options)
