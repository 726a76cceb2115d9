"""Region features of photos: JPEG and PNG of a folder, into the layout that training reads.

python launch/prepare_data.py extract --images=photos --output=features

Run the same command again to continue. The photo extractor needs the extra `photos`.
"""

import argparse


def define(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--images", required=True, help="Folder of photos, and folders in it.")
    parser.add_argument("--output", required=True, help="Folder to write to.")
    parser.add_argument(
        "--extractor", default="lite0", help="lite0, torchvision, or MODULE:FUNCTION of your own."
    )
    parser.add_argument("--size", type=int, default=320, help="lite0: photos become SIZE x SIZE.")
    parser.add_argument("--grid", type=int, default=0, help="lite0: cells on each side; 0: none.")
    parser.add_argument(
        "--pyramid", default="1,2,3", help="lite0: windows on each side, for each level."
    )
    parser.add_argument("--batch_size", type=int, default=16, help="Photos at a time.")
    parser.add_argument("--half", action="store_true", help="Store features as float16.")
    parser.add_argument("--skip_bad", action="store_true", help="Count bad photos and continue.")


def run(args: argparse.Namespace) -> None:
    """Extract; errors as in `extract_folder` and `make_extractor`."""
    from sparsecap_jax.errors import ConfigError
    from sparsecap_jax.photos.extract import extract_folder
    from sparsecap_jax.photos.extractors import make_extractor
    from sparsecap_jax.settings import use_plugin

    module, colon, _ = args.extractor.partition(":")
    if colon:
        use_plugin(module)
    options = {}
    if args.extractor == "lite0":
        try:
            pyramid = tuple(int(side) for side in args.pyramid.split(",") if side)
        except ValueError as error:
            raise ConfigError(f"--pyramid is {args.pyramid!r}; expected numbers: 1,2,3") from error
        options = {"size": args.size, "grid": args.grid, "pyramid": pyramid}
        options["batch_size"] = args.batch_size
    extract_folder(
        args.images,
        args.output,
        make_extractor(args.extractor, **options),
        batch_size=args.batch_size,
        half=args.half,
        skip_bad=args.skip_bad,
    )
