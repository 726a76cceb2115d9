"""Print what a folder of features holds, and what is missing for a split.

python launch/prepare_data.py inspect --features=data/coco --split_json=data/coco/dataset_coco.json
"""

import argparse

import numpy as np

from sparsecap_jax.data.features import NpyFolderStore
from sparsecap_jax.data.karpathy import load_karpathy


def define(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--features", required=True, help="Folder that holds cocobu_att/ or bu/.")
    parser.add_argument("--feature_size", type=int, default=2048, help="Width of the features.")
    parser.add_argument("--split_json", help="Split whose images should be there.")


def run(args: argparse.Namespace) -> None:
    """Print a report.

    Raises:
        DataError: something cannot be read.
    """
    store = NpyFolderStore(args.features, args.feature_size)
    ids = store.image_ids()
    counts = np.array([store.num_regions(image_id) for image_id in ids])
    print(f"{len(ids)} images, {counts.min()} to {counts.max()} regions, mean {counts.mean():.1f}")
    if args.split_json:
        here = set(ids)
        for name, records in load_karpathy(args.split_json).items():
            found = sum(record.image_id in here for record in records)
            print(f"{name}: {found} of {len(records)} images have features")
