"""Print the content of features, and the images of a split that lack them.

sparsecap prepare_data inspect --features=data/coco --split_json=data/coco/dataset_coco.json

--read reads every image and lists those that cannot be used; --verify compares the files of a
converted folder with their checksums. The exit status is 1 if anything is missing or bad.
"""

import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import flags

from sparsecap_jax.commands.prepare.convert import define_features, open_features
from sparsecap_jax.data.karpathy import split_ids
from sparsecap_jax.data.records import ImageId
from sparsecap_jax.data.stores import find_format
from sparsecap_jax.data.stores.array_records import ArrayRecordStore
from sparsecap_jax.data.stores.convert import verify
from sparsecap_jax.errors import DataError
from sparsecap_jax.text import counted

_SHOWN = 5


def define() -> None:
    """Define the flags."""
    define_features()
    flags.DEFINE_string("split_json", None, "Karpathy JSON whose images should be there.")
    flags.DEFINE_bool("boxes", False, "Require boxes.")
    flags.DEFINE_bool("read", False, "Read and check every image.")
    flags.DEFINE_bool("verify", False, "Compare checksums (ArrayRecord).")


def run(args: flags.FlagValues) -> None:
    """Print a report; DataError where the features or the split cannot be opened at all."""
    store = open_features(args)
    kind = find_format(pathlib.Path(args.features)) if args.format == "auto" else args.format
    ids = store.image_ids()
    if not ids:
        raise DataError(f"{store.path}: holds no images")
    total = counted(len(ids), "image")
    print(f"{store.path}: {kind}, {total}, ids {ids[0]!r} to {ids[-1]!r}")
    counts, faults = _read(store.num_regions, ids, "images whose regions cannot be counted")
    if counts:
        print(f"regions: {min(counts)} to {max(counts)} per image, mean {np.mean(counts):.1f}")

    def extent(image_id: ImageId) -> tuple[float, float, float]:
        features = store[image_id].features
        return float(features.min()), float(features.max()), float(features.mean())

    # Without --read, one image: a wrong width or missing boxes are the same in all of them.
    title = "images cannot be used" if args.read else "image was read, and cannot be used"
    images, faulty = _read(extent, ids if args.read else ids[:1], title)
    faults += faulty
    if images and args.read:
        lows, highs, means = zip(*images, strict=True)
        values = f"{min(lows):.4g} to {max(highs):.4g}, mean {sum(means) / len(means):.4g}"
        print(
            f"width {store.feature_size}, values: {values}\ngood: {counted(len(images), 'image')}"
        )
    elif images:
        boxes = ", with boxes" if store.need_boxes else ""  # they are read only where asked for
        print(f"image {ids[0]!r}: width {store.feature_size}{boxes}")
    for name, split in split_ids(args.split_json).items() if args.split_json else ():
        absent = [image_id for image_id in split if image_id not in store]
        shown = ", ".join(map(str, absent[:_SHOWN]))
        gaps = f"; missing: {shown}{', ...' if len(absent) > _SHOWN else ''}" if absent else ""
        found = f"{len(split) - len(absent):,} of {counted(len(split), 'image')}"
        print(f"{name}: features of {found}{gaps}")
        faults += len(absent)
    if args.verify and isinstance(store, ArrayRecordStore):
        differing = verify(store.path)
        shards = len(store.manifest["shards"])
        print("\n".join(differing) or f"right checksums: {counted(shards, 'file')}")
        faults += len(differing)
    if faults:
        sys.exit(1)


def _read(read: Callable[[ImageId], Any], ids: Sequence[ImageId], title: str) -> tuple[list, int]:
    """Return the results of `read`; print and count the images where it fails."""
    results, faults = [], []
    for image_id in ids:
        try:
            results.append(read(image_id))
        except DataError as error:
            faults.append(str(error))
    if faults:
        print(f"{len(faults):,} {title}:", *faults[:_SHOWN], sep="\n")
    return results, len(faults)
