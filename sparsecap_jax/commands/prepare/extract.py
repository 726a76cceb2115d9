"""Region features of the photos of a folder, into the layout that training reads.

sparsecap prepare_data extract --images=photos --output=features

Run the same command again to continue. The photo extractor needs the extra `photos`.
"""

from typing import Any

from absl import flags

from sparsecap_jax.commands.prepare import trust_entry
from sparsecap_jax.locks import locked, remove_strays


def define() -> None:
    """Define the flags."""
    flags.DEFINE_string("images", None, "Folder of photos, and folders in it.", required=True)
    flags.DEFINE_string("output", None, "Folder to write to.", required=True)
    flags.DEFINE_string("extractor", "lite0", "lite0, lite2, torchvision, or MODULE:FUNCTION.")
    flags.DEFINE_integer("size", 320, "lite0, lite2: photos become SIZE x SIZE.")
    flags.DEFINE_integer("grid", 0, "lite0, lite2: cells on each side; 0: none.")
    flags.DEFINE_string("pyramid", "1,2,3", "lite0, lite2: windows on each side, for each level.")
    flags.DEFINE_float("scale", 3.0, "lite0, lite2: factor of all features.")
    flags.DEFINE_integer("batch_size", 16, "Photos at a time.")
    flags.DEFINE_bool("half", False, "Store features as float16.")
    flags.DEFINE_bool("skip_bad", False, "Count bad photos and continue.")


def run(args: flags.FlagValues) -> None:
    """Extract; errors as in `extract_folder` and `make_extractor`."""
    from sparsecap_jax.data.extractor_notes import EXTRACTOR
    from sparsecap_jax.errors import ConfigError
    from sparsecap_jax.photos.extract import FOLDERS, extract_folder
    from sparsecap_jax.photos.extractors import make_extractor

    trust_entry(args.extractor)
    options = {}
    if args.extractor in ("lite0", "lite2"):
        try:
            pyramid = tuple(int(side) for side in args.pyramid.split(",") if side)
        except ValueError as error:
            raise ConfigError(f"--pyramid is {args.pyramid!r}; expected numbers: 1,2,3") from error
        options = {"size": args.size, "grid": args.grid, "pyramid": pyramid}
        options |= {"batch_size": args.batch_size, "scale": args.scale}
    extractor = make_extractor(args.extractor, **options)
    settings: dict[str, Any] = {
        name: args[name].value for name in ("batch_size", "half", "skip_bad")
    }
    with locked(args.output):
        for folder in ("", *FOLDERS):
            remove_strays(f"{args.output}/{folder}", EXTRACTOR, "*.npy")
        extract_folder(args.images, args.output, extractor, **settings)
