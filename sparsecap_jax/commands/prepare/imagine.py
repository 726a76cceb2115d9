r"""Make a dataset of photos, and of captions without photos whose features are imagined.

sparsecap prepare_data imagine --photos=data/flickr8k_1k,data/coco_photos \
    --features=features/flickr8k_1k,features/coco_photos \
    --text=flickr8k:data/flickr8k_text,karpathy:data/coco --output=data/flickr8k_mini

Photo folders hold captions.json and images/; the first one's splits are used. Text is any dataset
(`DATASETS` in sparsecap_jax/data/datasets.py): the captions of its training split, without images
that the photos hold out. Without it the folder joins the photos, and nothing is imagined.
"""

import pathlib

from absl import flags

from sparsecap_jax.commands.prepare.convert import define_width, width_of


def define() -> None:
    """Define the flags."""
    flags.DEFINE_list("photos", None, "Photo folders, with commas.", required=True)
    flags.DEFINE_list("features", None, "Their features, in the same order.", required=True)
    flags.DEFINE_list("text", [], "NAME:FOLDER of captions, with commas.")
    define_width()
    flags.DEFINE_string("output", None, "Folder to write to.", required=True)


def run(args: flags.FlagValues) -> None:
    """Fit and write; ConfigError where the lists do not match, DataError for bad files."""
    from sparsecap_jax.data.imagined_dataset import prepare
    from sparsecap_jax.errors import ConfigError

    if len(args.photos) != len(args.features):
        counts = f"{len(args.photos)} --photos, {len(args.features)} --features"
        raise ConfigError(f"{counts}; expected as many")
    sources = []
    for part in filter(None, args.text):
        name, colon, folder = part.partition(":")
        if not colon:
            raise ConfigError(f"--text: found {name!r}; expected NAME:FOLDER")
        sources.append((name, pathlib.Path(folder)))
    folders = map(pathlib.Path, args.photos), map(pathlib.Path, args.features)
    width = width_of(args, args.features[0])
    prepare(list(zip(*folders, strict=True)), sources, args.output, width)
