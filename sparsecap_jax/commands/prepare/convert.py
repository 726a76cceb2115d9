r"""Turn features of any known format into ArrayRecord, which is read at random.

python launch/prepare_data.py convert --features=trainval.tsv --output=data/coco/features \
    --boxes --dtype=float16

A stopped command continues when it is run again. The output folder holds a manifest with checksums,
which `inspect --verify` compares. Models that need boxes need --boxes here too.
"""

from absl import flags

from sparsecap_jax.commands.prepare import trust_entry
from sparsecap_jax.data.features import IndexedStore
from sparsecap_jax.data.stores import STORES, open_store
from sparsecap_jax.data.stores.array_records import DTYPES
from sparsecap_jax.data.stores.convert import convert
from sparsecap_jax.files import locked, remove_strays


def define_features() -> None:
    """Define the flags of `open_features`, except for --boxes."""
    formats = f"auto, {', '.join(STORES)}, or MODULE:NAME of your own."
    flags.DEFINE_string("features", None, "File or folder of features.", required=True)
    flags.DEFINE_string("format", "auto", f"Its format: {formats}")
    flags.DEFINE_integer("feature_size", 2048, "Width of the features.")
    flags.DEFINE_string("image_sizes", "", "JSON or folder of image sizes, for boxes in pixels.")


def open_features(args: flags.FlagValues) -> IndexedStore:
    """Open the store that the flags name."""
    trust_entry(args.format)
    return open_store(
        args.features, args.feature_size, args.boxes, sizes=args.image_sizes, format=args.format
    )


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
