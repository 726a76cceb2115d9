"""Print the content of features, and the images of a split that lack them.

python launch/prepare_data.py inspect --features=data/coco --split_json=data/coco/dataset_coco.json

--read reads every image and lists those that cannot be used; --verify compares the files of a
converted folder with their checksums. The exit status is 1 if anything is missing or bad.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sparsecap_jax.commands.prepare.convert import define_features, open_features
from sparsecap_jax.data.features import IndexedStore
from sparsecap_jax.data.karpathy import split_ids
from sparsecap_jax.data.records import ImageId
from sparsecap_jax.data.stores import find_format
from sparsecap_jax.data.stores.array_records import ArrayRecordStore
from sparsecap_jax.data.stores.convert import verify
from sparsecap_jax.errors import DataError

_SHOWN = 5


def define(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    define_features(parser)
    parser.add_argument("--split_json", help="Karpathy JSON whose images should be there.")
    parser.add_argument("--boxes", action="store_true", help="Require boxes.")
    parser.add_argument("--read", action="store_true", help="Read and check every image.")
    parser.add_argument("--verify", action="store_true", help="Compare checksums (ArrayRecord).")


def run(args: argparse.Namespace) -> None:
    """Print a report; DataError where the features or the split cannot be opened at all."""
    store = open_features(args)
    kind = find_format(pathlib.Path(args.features)) if args.format == "auto" else args.format
    ids = store.image_ids()
    if not ids:
        raise DataError(f"{store.path}: holds no images")
    print(f"{store.path}: {kind}, {len(ids):,} images, ids {ids[0]!r} to {ids[-1]!r}")
    faults = _print_regions(store, ids)
    if args.read:
        faults += _print_contents(store, ids)
    else:
        faults += _print_first(store, ids[0])
    if args.split_json:
        faults += _print_split(args.split_json, set(ids))
    if args.verify and isinstance(store, ArrayRecordStore):
        differing = verify(store.path)
        shards = len(store.manifest["shards"])
        print("\n".join(differing) or f"checksums of {shards} files are right")
        faults += len(differing)
    if faults:
        sys.exit(1)


def _read_all(read: Callable[[ImageId], Any], ids: Sequence[ImageId]) -> tuple[list, list[str]]:
    """Return the results of `read` for every image, and the faults of those where it fails."""
    results, faults = [], []
    for image_id in ids:
        try:
            results.append(read(image_id))
        except DataError as error:
            faults.append(str(error))
    return results, faults


def _print_regions(store: IndexedStore, ids: Sequence[ImageId]) -> int:
    counts, faults = _read_all(store.num_regions, ids)
    if counts:
        low, high, mean = min(counts), max(counts), np.mean(counts)
        print(f"regions: {low} to {high} per image, mean {mean:.1f}")
    return _print_faults("images whose regions cannot be counted", faults)


def _print_first(store: IndexedStore, first: ImageId) -> int:
    """Read one image: a wrong width or missing boxes are the same in all images."""
    images, faults = _read_all(store.__getitem__, [first])
    boxes = ", with boxes" if store.need_boxes else ""  # they are read only where asked for
    for image in images:
        print(f"image {first!r}: width {image.features.shape[1]}{boxes}")
    return _print_faults("image was read, and cannot be used", faults)


def _print_contents(store: IndexedStore, ids: Sequence[ImageId]) -> int:
    def summary(image_id: ImageId) -> tuple[float, float, float]:
        features = store[image_id].features
        return float(features.min()), float(features.max()), float(features.mean())

    summaries, faults = _read_all(summary, ids)
    if summaries:
        lows, highs, means = zip(*summaries, strict=True)
        values = f"{min(lows):.4g} to {max(highs):.4g}, mean {sum(means) / len(means):.4g}"
        print(f"width {store.feature_size}, values: {values}")
        print(f"{len(summaries):,} images are good")
    return _print_faults("images cannot be used", faults)


def _print_split(path: str, present: set[ImageId]) -> int:
    missing = 0
    for name, ids in split_ids(path).items():
        absent = [image_id for image_id in ids if image_id not in present]
        shown = ", ".join(map(str, absent[:_SHOWN]))
        gaps = f"; missing: {shown}{', ...' if len(absent) > _SHOWN else ''}" if absent else ""
        print(f"{name}: {len(ids) - len(absent):,} of {len(ids):,} images have features{gaps}")
        missing += len(absent)
    return missing


def _print_faults(what: str, faults: list[str]) -> int:
    if faults:
        print(f"{len(faults):,} {what}:")
        print("\n".join(faults[:_SHOWN]))
    return len(faults)
