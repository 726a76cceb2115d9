"""The dataset of photos and of captions whose features are imagined: made once, then opened.

`DIR/images.json` lists images and captions by source, `DIR/imagined.npz` is the regression
(`data/imagined.py`), `DIR/bu/` holds the photos' features.
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sparsecap_jax.data import imagined
from sparsecap_jax.data.features import NpyFolderStore
from sparsecap_jax.data.karpathy import ImageId, Record, image_id_from_filename
from sparsecap_jax.errors import ConfigError, DataError
from sparsecap_jax.files import read_json, write_json

IMAGES, IMAGINED = "images.json", "imagined.npz"
_SPLITS = {"train": "train", "dev": "val", "val": "val", "test": "test"}
_WORDS = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")


@dataclasses.dataclass(frozen=True)
class Sources:
    """Where photos and text come from.

    Attributes:
        photos: folders with captions.json, each with the folder of its features; the first one's
            splits are used, images of the others are all for training.
        flickr8k_text: folder of Flickr8k's token file and lists, or None.
        coco_without: files of ids of COCO images to leave out; None for no COCO text.
    """

    photos: Sequence[tuple[pathlib.Path, pathlib.Path]]
    flickr8k_text: pathlib.Path | None = None
    coco_without: Sequence[pathlib.Path] | None = None


def prepare(
    sources: Sources,
    output: str | os.PathLike,
    feature_size: int,
    report: Callable[[str], None] = print,
) -> None:
    """Write a dataset folder.

    Raises:
        DataError: something is missing or broken.
    """
    output = pathlib.Path(output)
    images = {}
    for number, (folder, features) in enumerate(sources.photos):
        images[folder.name] = _photos(folder, first=number == 0)
        _copy_features(images[folder.name], features, output / "bu")
    groups = [(n, i) for n, name in enumerate(images) for i in images[name]]
    _fit([(n, i) for n, i in groups if i["split"] == "train"], output, feature_size, report)
    held_out = {i["id"] for _, i in groups if i["split"] != "train"}
    if sources.flickr8k_text:
        images["flickr8k_text"] = list(_flickr8k(sources.flickr8k_text, held_out))
    if sources.coco_without is not None:
        images["coco_text"] = list(_coco(sources.coco_without, held_out))
    write_json(output / IMAGES, images)
    for name, found in images.items():
        report(
            f"{name}: {len(found):,} images, {sum(len(i['captions']) for i in found):,} captions"
        )


def load_imagined(directory: str | os.PathLike, feature_size: int, need_boxes: bool, mixture: str):
    """Open a dataset folder.

    Args:
        directory: what `prepare` wrote.
        feature_size: width D of the features.
        need_boxes: whether boxes are read.
        mixture: how often each source is seen in an epoch, `source=times,...`; "" once each.

    Returns:
        Records by split, the store, and the regression's captions by id.

    Raises:
        ConfigError: a mixture of unknown sources.
        DataError: a file is missing or broken.
    """
    directory = pathlib.Path(directory)
    sources = read_json(directory / IMAGES)
    times = _parse_mixture(mixture, sources)
    photos = NpyFolderStore(directory, feature_size, need_boxes)
    splits: dict[str, list[Record]] = {"train": [], "val": [], "test": []}
    text: dict[ImageId, tuple[str, ...]] = {}
    for name, images in sources.items():
        for image in images:
            raw = tuple(image["captions"])
            captions = tuple(" ".join(_WORDS.findall(caption.lower())) for caption in raw)
            record = Record(image["id"], image["split"], image.get("filename", ""), captions, raw)
            if image["split"] != "train" or "filename" in image:
                copies = times[name] if image["split"] == "train" else 1
                splits[image["split"]] += [record] * copies
                continue
            for copy in range(times[name]):
                image_id = f"{name}/{image['id']}/{copy}"
                text[image_id] = captions
                splits["train"].append(dataclasses.replace(record, image_id=image_id))
    store = imagined.ImaginedStore(photos, imagined.load(directory / IMAGINED), text)
    return splits, store


def _parse_mixture(mixture: str, sources: Mapping[str, Any]) -> dict[str, int]:
    times = dict.fromkeys(sources, 0 if mixture else 1)
    for part in filter(None, mixture.split(",")):
        name, _, number = part.partition("=")
        if name not in sources or not number.isdigit():
            raise ConfigError(
                f"config.data.mixture: found {part!r}; expected SOURCE=TIMES with a source of "
                f"{', '.join(sources)}"
            )
        times[name] = int(number)
    return times


def _photos(folder: pathlib.Path, first: bool) -> list[dict[str, Any]]:
    """Images of a folder's captions.json; those of no known split are left out."""
    path = folder / "captions.json"
    found = []
    try:
        for image in read_json(path)["images"]:
            split = _SPLITS.get(image["split"])
            if split and (first or split == "train"):
                image_id = image_id_from_filename(image["filename"])
                entry = {"id": image_id, "split": split, "filename": image["filename"]}
                found.append({**entry, "captions": list(image["captions"])})
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: an image lacks filename, split or captions") from error
    return found


def _copy_features(images: Sequence[Mapping], source: pathlib.Path, output: pathlib.Path) -> None:
    for kind in ("cocobu_att", "cocobu_box_relative", "cocobu_fc"):
        (output / kind).mkdir(parents=True, exist_ok=True)
        for image in images:
            name = f"{image['id']}.npy"
            if not (source / kind / name).exists():
                raise DataError(f"{source / kind / name}: no such file; extract features first")
            shutil.copyfile(source / kind / name, output / kind / name)


def _fit(
    groups: Sequence[tuple[int, Mapping]], output: pathlib.Path, feature_size: int, report
) -> None:
    store = NpyFolderStore(output, feature_size, need_boxes=True)
    regions = [store[image["id"]] for _, image in groups]
    fitted, figures = imagined.fit(
        np.stack([r.features for r in regions]),
        regions[0].boxes,
        [image["captions"] for _, image in groups],
        [number for number, _ in groups],
    )
    imagined.save(output / IMAGINED, fitted)
    report("imagined features: " + ", ".join(f"{k} {v:g}" for k, v in figures.items()))


def _flickr8k(folder: pathlib.Path, held_out: set) -> Iterator[dict[str, Any]]:
    """Captions of Flickr8k's training images."""
    train = set((folder / "Flickr_8k.trainImages.txt").read_text().split())
    captions: dict[str, list[str]] = {}
    for line in (folder / "Flickr8k.token.txt").read_text(encoding="utf-8").splitlines():
        name, _, caption = line.partition("\t")
        captions.setdefault(name.partition("#")[0], []).append(caption)
    for name in sorted(train):
        image_id = image_id_from_filename(name)
        if image_id not in held_out and captions.get(name):
            yield {"id": image_id, "split": "train", "captions": captions[name]}


def _coco(without: Sequence[pathlib.Path], held_out: set) -> Iterator[dict[str, Any]]:
    """COCO's captions, as they come with pycocoevalcap, but those of the id lists."""
    left_out = {int(line.split()[-1]) for p in without for line in p.read_text().splitlines()}
    captions: dict[int, list[str]] = {}
    spec = importlib.util.find_spec("pycocoevalcap")
    jar = pathlib.Path(next(iter(spec.submodule_search_locations))) / "spice" / "spice-1.0.jar"
    with zipfile.ZipFile(jar) as archive:
        for year in ("train2014", "val2014"):
            with archive.open(f"coco/annotations/captions_{year}.json") as file:
                for entry in json.load(file)["annotations"]:
                    captions.setdefault(entry["image_id"], []).append(entry["caption"])
    for image_id in sorted(captions.keys() - left_out - held_out):
        yield {"id": image_id, "split": "train", "captions": captions[image_id]}
