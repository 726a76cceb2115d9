"""Writer of dataset folders of photos, and of captions whose features are imagined."""

import json
import os
import pathlib
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sparsecap_jax.data import imagined
from sparsecap_jax.data.datasets import load_splits
from sparsecap_jax.data.extractor_notes import EXTRACTOR, check_features, noted_settings
from sparsecap_jax.data.records import SPLITS, Record, Splits
from sparsecap_jax.data.stores import NpyFolderStore
from sparsecap_jax.errors import ConfigError, DataError
from sparsecap_jax.files import absent, write_atomically, write_json
from sparsecap_jax.text import counted


def prepare(
    photos: Sequence[tuple[pathlib.Path, pathlib.Path]],
    text: Sequence[tuple[str, pathlib.Path]],
    output: str | os.PathLike,
    feature_size: int,
    report: Callable[[str], None] = print,
) -> None:
    """Write a dataset folder (see `imagined`).

    The first photo folder's splits are used; the others, and the text, give their training images,
    without those that the first folder holds out.

    Args:
        photos: folders with captions.json, each with the folder of its features.
        text: datasets (`datasets.DATASETS`) and their folders, for captions alone; may be none.
        output: folder to write to.
        feature_size: width D of the features.
        report: takes one line at a time.

    Raises:
        ConfigError: two folders of one name.
        DataError: something is missing or broken.
    """
    output = pathlib.Path(output)
    names = [*(folder.name for folder, _ in photos), *(folder.name for _, folder in text)]
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise ConfigError(f"two sources are named {name!r}; expected folders of different names")
    seen = {folder.name: load_splits("photos", folder) for folder, _ in photos}
    main, *others = seen
    seen |= {name: _training_only(seen[name], seen[main]) for name in others}
    notes = noted_settings(photos[0][1])
    for _, features in photos[1:]:
        check_features(notes, features, f"{photos[0][1]} has")
    for (_, features), splits in zip(photos, seen.values(), strict=True):
        _copy_features([r for name in SPLITS for r in splits[name]], features, output / "bu")
    read = {f.name: _training_only(load_splits(name, f), seen[main]) for name, f in text}
    if read:
        report(_fit(seen, output, feature_size))
    if notes:
        write_json(output / EXTRACTOR, notes)
    _write(output / imagined.PHOTOS, seen)
    _write(output / imagined.TEXT, read)
    for name, splits in {**seen, **read}.items():
        captions = sum(len(record.captions) for record in splits["train"])
        images = counted(len(splits["train"]), "training image")
        report(f"{name}: {images}, {counted(captions, 'caption')}")


def _training_only(splits: Splits, main: Splits) -> Splits:
    """Return the training images, without any that the main photos hold out."""
    held_out = {record.image_id for name in ("val", "test") for record in main[name]}
    train = [record for record in splits["train"] if record.image_id not in held_out]
    return {"train": train, "val": [], "test": []}


def _copy_features(records: Sequence[Record], source: pathlib.Path, output: pathlib.Path) -> None:
    for folder in ("cocobu_att", "cocobu_box_relative", "cocobu_fc"):
        (output / folder).mkdir(parents=True, exist_ok=True)
        for record in records:
            path = source / folder / f"{record.image_id}.npy"
            if not path.exists():
                raise DataError(absent(path, "features (sparsecap prepare_data extract)"))
            shutil.copyfile(path, output / folder / path.name)


def _fit(seen: Mapping[str, Splits], output: pathlib.Path, feature_size: int) -> str:
    """Fit the regression on the training photos; return the line to report."""
    store = NpyFolderStore(output, feature_size, need_boxes=True)
    records = [(n, r) for n, splits in enumerate(seen.values()) for r in splits["train"]]
    regions: list[Any] = [store[record.image_id] for _, record in records]
    if len({image.features.shape for image in regions}) > 1:
        raise DataError(f"{output}: photos have different windows; expected the same for all")
    fitted, figures = imagined.fit(
        np.stack([image.features for image in regions]),
        regions[0].boxes,
        [record.captions for _, record in records],
        [number for number, _ in records],
    )
    imagined.save(output / imagined.IMAGINED, fitted)
    return "imagined features: " + ", ".join(f"{k} {v:.4g}" for k, v in figures.items())


def _write(path: pathlib.Path, sources: Mapping[str, Splits]) -> None:
    content = {
        name: {
            split: [[r.image_id, r.filename, r.captions, r.raw] for r in records]
            for split, records in splits.items()
        }
        for name, splits in sources.items()
    }
    with write_atomically(path) as file:
        json.dump(content, file, ensure_ascii=False)
