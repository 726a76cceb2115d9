"""The dataset of photos and of captions whose features are imagined: made once, then opened.

`DIR/photos.json` and `DIR/text.json` hold the images of each source with their captions,
`DIR/imagined.npz` the regression (`data/imagined.py`), `DIR/bu/` the photos' features.
"""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sparsecap_jax.data import imagined
from sparsecap_jax.data.datasets import Splits, load_splits
from sparsecap_jax.data.features import NpyFolderStore
from sparsecap_jax.data.records import SPLITS, Record
from sparsecap_jax.errors import ConfigError, DataError
from sparsecap_jax.files import read_json, write_atomically

PHOTOS, TEXT, IMAGINED = "photos.json", "text.json", "imagined.npz"
SETTINGS = "extractor.json"
_FOLDERS = ("cocobu_att", "cocobu_box_relative", "cocobu_fc")

Named = Mapping[str, Splits]
"""Records by source and split."""


def prepare(
    photos: Sequence[tuple[pathlib.Path, pathlib.Path]],
    text: Sequence[tuple[str, pathlib.Path]],
    output: str | os.PathLike,
    feature_size: int,
    report: Callable[[str], None] = print,
) -> None:
    """Write a dataset folder.

    The first photo folder's splits are used; of the others, and of the text, the training images
    alone, and none of them that is held out anywhere.

    Args:
        photos: folders with captions.json, each with the folder of its features.
        text: datasets (`datasets.DATASETS`) and their folders, for captions alone.
        output: folder to write to.
        feature_size: width D of the features.
        report: takes one line at a time.

    Raises:
        ConfigError: two folders of one name.
        DataError: something is missing or broken.
    """
    output = pathlib.Path(output)
    names = [folder.name for folder in (*(f for f, _ in photos), *(f for _, f in text))]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two sources are named {twice!r}; expected folders of different names")
    seen = {folder.name: load_splits("photos", folder) for folder, _ in photos}
    main, *others = seen
    seen |= {name: _training_only(seen[name], seen[main]) for name in others}
    for (_, features), splits in zip(photos, seen.values(), strict=True):
        _copy_features([r for name in SPLITS for r in splits[name]], features, output / "bu")
    read = {f.name: _training_only(load_splits(name, f), seen[main]) for name, f in text}
    _fit(seen, output, feature_size, report)
    settings = photos[0][1] / SETTINGS
    if settings.exists():
        shutil.copyfile(settings, output / SETTINGS)
    _write(output / PHOTOS, seen)
    _write(output / TEXT, read)
    for name, splits in {**seen, **read}.items():
        captions = sum(len(record.captions) for record in splits["train"])
        report(f"{name}: {len(splits['train']):,} training images, {captions:,} captions")


def load_imagined(
    directory: pathlib.Path, feature_size: int, need_boxes: bool, mixture: str
) -> tuple[Splits, imagined.ImaginedStore]:
    """Open a dataset folder.

    Args:
        directory: what `prepare` wrote.
        feature_size: width D of the features.
        need_boxes: whether boxes are read.
        mixture: how often an epoch sees each source, `source=times,...`; "" for each once.

    Returns:
        Records by split, and the store of their features.

    Raises:
        ConfigError: a mixture of unknown sources.
        DataError: a file is missing or broken.
    """
    if not (directory / PHOTOS).exists():
        raise DataError(
            f"{directory / PHOTOS}: no such file; expected a folder that `prepare_data.py imagine` "
            "wrote (docs/photos.md)"
        )
    seen, read = _read(directory / PHOTOS), _read(directory / TEXT)
    times = _parse_mixture(mixture, [*seen, *read])
    splits: Splits = {name: [r for s in seen.values() for r in s[name]] for name in SPLITS}
    splits["train"] = [r for name, s in seen.items() for r in s["train"] * times[name]]
    text = {}
    for name, source in read.items():
        for record in source["train"]:
            for copy in range(times[name]):
                image_id = f"{name}/{record.image_id}/{copy}"
                text[image_id] = record.captions
                splits["train"].append(dataclasses.replace(record, image_id=image_id))
    photos = NpyFolderStore(directory, feature_size, need_boxes)
    return splits, imagined.ImaginedStore(photos, imagined.load(directory / IMAGINED), text)


def _parse_mixture(mixture: str, sources: Sequence[str]) -> dict[str, int]:
    times = dict.fromkeys(sources, 0 if mixture else 1)
    for part in filter(None, mixture.split(",")):
        name, _, number = part.partition("=")
        if name not in times or not number.isdigit():
            raise ConfigError(
                f"config.data.mixture: found {part!r}; expected SOURCE=TIMES with a source of "
                f"{', '.join(sources)}"
            )
        times[name] = int(number)
    return times


def _training_only(splits: Splits, main: Splits) -> Splits:
    """Training images, without any that the main photos hold out."""
    held_out = {record.image_id for name in ("val", "test") for record in main[name]}
    train = [record for record in splits["train"] if record.image_id not in held_out]
    return {"train": train, "val": [], "test": []}


def _copy_features(records: Iterable[Record], source: pathlib.Path, output: pathlib.Path) -> None:
    for folder in _FOLDERS:
        (output / folder).mkdir(parents=True, exist_ok=True)
    for record in records:
        for folder in _FOLDERS:
            path = source / folder / f"{record.image_id}.npy"
            if not path.exists():
                raise DataError(f"{path}: no such file; expected features (extract)")
            shutil.copyfile(path, output / folder / path.name)


def _fit(seen: Named, output: pathlib.Path, feature_size: int, report: Callable) -> None:
    """Fit the regression on the training photos."""
    store = NpyFolderStore(output, feature_size, need_boxes=True)
    records = [(n, r) for n, splits in enumerate(seen.values()) for r in splits["train"]]
    regions = [store[record.image_id] for _, record in records]
    if len({found.features.shape for found in regions}) > 1:
        raise DataError(f"{output}: photos have different windows; expected the same for all")
    fitted, figures = imagined.fit(
        np.stack([found.features for found in regions]),
        regions[0].boxes,
        [record.captions for _, record in records],
        [number for number, _ in records],
    )
    imagined.save(output / IMAGINED, fitted)
    report("imagined features: " + ", ".join(f"{k} {v:.4g}" for k, v in figures.items()))


def _write(path: pathlib.Path, sources: Named) -> None:
    content = {
        name: {
            split: [[r.image_id, r.filename, r.captions, r.raw] for r in records]
            for split, records in splits.items()
        }
        for name, splits in sources.items()
    }
    with write_atomically(path) as file:
        json.dump(content, file, ensure_ascii=False)


def _read(path: pathlib.Path) -> dict[str, Splits]:
    def record(split: str, entry: Any) -> Record:
        image_id, filename, captions, raw = entry
        return Record(image_id, split, filename, tuple(captions), tuple(raw))

    try:
        return {
            name: {split: [record(split, e) for e in splits[split]] for split in SPLITS}
            for name, splits in read_json(path).items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not what `imagine` writes: {error!r}") from error
