"""Prepare captions and features as a tensorflow-datasets folder (ArrayRecord, no TensorFlow).

python launch/prepare_data.py tfds --manual_dir=data/coco --data_dir=data/tfds --boxes

The manual directory holds the captions of a dataset (dataset_coco.json by default) and its
features, in any known format. Train on the folder that is printed with --config.data.name=tfds and
--config.data.dir; any program that uses tfds opens it.
"""

import argparse
import dataclasses
import pathlib

from sparsecap_jax.data.datasets import DATASETS
from sparsecap_jax.errors import DataError


def define(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--manual_dir", required=True, type=pathlib.Path, help="What to read.")
    parser.add_argument("--data_dir", required=True, type=pathlib.Path, help="Where to write.")
    parser.add_argument("--dataset", default="karpathy", choices=sorted(DATASETS))
    parser.add_argument("--split_json", default="", help="Its main file, where there is a choice.")
    parser.add_argument("--features", default="", help="Features, relative to --manual_dir.")
    parser.add_argument("--image_sizes", default="", help="Image sizes, relative to it.")
    parser.add_argument("--feature_size", type=int, default=2048, help="Width of the features.")
    parser.add_argument("--boxes", action="store_true", help="Keep boxes too.")


def run(args: argparse.Namespace) -> None:
    """Prepare; DataError where captions or features are missing or malformed."""
    from tensorflow_datasets import disable_progress_bar, download

    from sparsecap_jax.data.coco_builder import CaptionConfig, CaptionFeatures

    if not (args.manual_dir.is_dir() and any(args.manual_dir.iterdir())):
        raise DataError(f"{args.manual_dir}: no such folder, or empty; expected captions")
    disable_progress_bar()
    name = "coco" if args.dataset == "karpathy" else args.dataset
    names = [field.name for field in dataclasses.fields(CaptionConfig) if field.name in args]
    config = CaptionConfig(name=name, **{field: getattr(args, field) for field in names})
    builder = CaptionFeatures(data_dir=str(args.data_dir), config=config)
    manual = download.DownloadConfig(manual_dir=str(args.manual_dir.resolve()))
    builder.download_and_prepare(download_config=manual)
    counts = {name: split.num_examples for name, split in builder.info.splits.items()}
    print(f"prepared {builder.data_path}: {counts}")
