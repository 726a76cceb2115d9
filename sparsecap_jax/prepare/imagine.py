r"""A dataset of photos, and of captions without photos whose features are imagined.

python launch/prepare_data.py imagine --photos=data/flickr8k_1k --features=features/flickr8k_1k \
    --more_photos=data/coco_photos --more_features=features/coco_photos \
    --flickr8k_text=data/flickr8k_text --coco_without=val_images.txt,test_images.txt \
    --output=data/flickr8k_mini

Photo folders hold captions.json and images/. Validation and test photos are those of --photos;
their captions are never used for anything but scores. Flickr8k's own text is cut to its training
list; COCO's captions (of all 123,287 images but those of the id lists) come with pycocoevalcap.
"""

import argparse
import pathlib


def define(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--photos", required=True, help="Folder with captions.json.")
    parser.add_argument("--features", required=True, help="Their features (extract).")
    parser.add_argument("--more_photos", help="Another such folder, for training alone.")
    parser.add_argument("--more_features", help="Its features.")
    parser.add_argument("--flickr8k_text", help="Folder of Flickr8k.token.txt and the lists.")
    parser.add_argument("--coco_without", help="Lists of COCO images to leave out, with commas.")
    parser.add_argument("--feature_size", type=int, help="Width; by default Lite0's, 1280.")
    parser.add_argument("--output", required=True, help="Folder to write to.")


def run(args: argparse.Namespace) -> None:
    """Fit and write.

    Raises:
        DataError: something is missing or broken.
    """
    from sparsecap_jax.data.imagined_dataset import Sources, prepare
    from sparsecap_jax.photos.lite0 import FEATURES

    pairs = [(args.photos, args.features), (args.more_photos, args.more_features)]
    photos = [(pathlib.Path(a), pathlib.Path(b)) for a, b in pairs if a and b]
    text = pathlib.Path(args.flickr8k_text) if args.flickr8k_text else None
    without = args.coco_without and [pathlib.Path(p) for p in args.coco_without.split(",")]
    prepare(Sources(photos, text, without), args.output, args.feature_size or FEATURES)
