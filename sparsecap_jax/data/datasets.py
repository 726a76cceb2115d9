"""Datasets by name: records of every split, the features' store, and where the pictures lie.

To add one: a function from a `Source` to the records of its splits, and a line in `DATASETS`.
"""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from sparsecap_jax.data.cache import CachedStore
from sparsecap_jax.data.coco_json import (
    check_disjoint,
    load_coco_json,
    load_image_info,
    read_id_list,
)
from sparsecap_jax.data.features import FeatureStore
from sparsecap_jax.data.fields import Faults
from sparsecap_jax.data.flickr import load_flickr_tokens
from sparsecap_jax.data.indexed_store import IndexedStore
from sparsecap_jax.data.instapic import load_instapic
from sparsecap_jax.data.karpathy import load_karpathy
from sparsecap_jax.data.photo_folder import load_photo_folder
from sparsecap_jax.data.records import SPLITS, Record, image_id_from_filename
from sparsecap_jax.data.stores import open_store
from sparsecap_jax.errors import ConfigError, DataError
from sparsecap_jax.settings import Registry

logger = logging.getLogger(__name__)

Section = ConfigDict | Mapping[str, Any]
Splits = dict[str, list[Record]]


# The embedded datasets: the options of `make_toy_scenes`.
TOY: dict[str, dict[str, Any]] = {
    "toy": {},
    "toy_boxes": {"boxes_only": True},
    "toy_plain": {"plain": True},
    "toy_plain_boxes": {"plain": True, "boxes_only": True},
    # With 2,000 scenes even plain box geometry learns it less well.
    "toy_near": {"near": True, "boxes_only": True, "sizes": (6000, 200, 200)},
}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset that is ready to be read.

    Attributes:
        splits: records of "train", "val" and "test".
        store: features by image id.
        images: folder of the pictures, which need not exist.
    """

    splits: Mapping[str, list[Record]]
    store: FeatureStore
    images: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the records of a dataset are read from.

    Attributes:
        directory: the dataset's folder.
        split_json: name of its main file, where there is a choice; "" for the usual one.
        text: what `Record.captions` hold: "tokens" or "raw".
        faults: what happens to bad entries.
    """

    directory: pathlib.Path
    split_json: str = ""
    text: str = "tokens"
    faults: Faults = dataclasses.field(default_factory=Faults)


def load_splits(
    name: str,
    directory: str | os.PathLike,
    *,
    split_json: str = "",
    text: str = "tokens",
    skip_bad: bool = False,
) -> Splits:
    """Read the records of dataset `name`, without features.

    Args:
        name: a key of `DATASETS`.
        directory: its folder.
        split_json: its main file in `directory`, or a path; "" for the usual one.
        text: what to train on: "tokens" (the split's own, or the words of the captions where it has
            none) or "raw" (the captions as written).
        skip_bad: leave out bad entries, log and count them, instead of stopping at the first one.

    Raises:
        ConfigError: there is no dataset of that name.
        DataError: its files are missing or malformed.
    """
    read = DATASETS[name]
    source = Source(pathlib.Path(directory), split_json, text, Faults(skip_bad, "images"))
    return read(source)


def load_dataset(config: Section, *, need_boxes: bool = False) -> Dataset:
    """Open the dataset that `config` (`config.data`) names.

    Args:
        config: the section `data` of a config.
        need_boxes: whether the model reads boxes; images without them are an error then.

    Raises:
        ConfigError: there is no dataset of that name, or its folder is not given.
        DataError: its files are missing or malformed.
    """
    name, directory = config["name"], config["dir"]
    if name == "imagined":
        return _imagined(config, need_boxes)
    if name in TOY:
        from sparsecap_jax.data.toy_scenes import make_toy_scenes

        directory = make_toy_scenes(directory or toy_scenes_dir(name), **TOY[name])
    elif name in DATASETS and not directory:
        raise ConfigError("config.data.dir is empty; expected the folder of the split JSON and bu/")
    splits = load_splits(
        name,
        directory,
        split_json=config["split_json"],
        text="raw" if config["raw_captions"] else "tokens",
        skip_bad=config["skip_bad"],
    )
    store = open_store(
        config["features"] or directory,
        config["feature_size"],
        need_boxes,
        sizes=config["image_sizes"],
        format=config["features_format"],
    )
    if config["skip_bad"]:
        splits = _with_features(splits, store)
    cached = CachedStore(
        store,
        max_bytes=int(config["cache_gb"] * 2**30),
        min_free_ram=config["cache_min_free_ram"],
        dtype=config["cache_dtype"],
    )
    return Dataset(splits, cached, pathlib.Path(directory) / "images")


def _imagined(config: Section, need_boxes: bool) -> Dataset:
    """Photos, and captions with imagined features: what `prepare_data.py imagine` wrote."""
    from sparsecap_jax.data.imagined_dataset import load_imagined

    directory = pathlib.Path(config["dir"])
    splits, store = load_imagined(directory, config["feature_size"], need_boxes, config["mixture"])
    return Dataset(splits, store, directory / "images")


def _with_features(splits: Splits, store: IndexedStore) -> Splits:
    """Leave out records without features, and say how many."""
    kept = {name: [r for r in rs if r.image_id in store.index] for name, rs in splits.items()}
    for name, records in splits.items():
        missing = len(records) - len(kept[name])
        if missing:
            message = "%s: %d of %d %s images have no features and are left out"
            logger.warning(message, store.path, missing, len(records), name)
    return kept


def toy_scenes_dir(name: str = "toy") -> pathlib.Path:
    """Where the toy scenes of a key of TOY are kept by default: below the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "sparsecap_jax" / name.replace("toy", "toy_scenes")


def _karpathy(source: Source) -> Splits:
    """A Karpathy split JSON: COCO, Flickr8k, Flickr30k, toy scenes."""
    return load_karpathy(_split_json(source), text=source.text, faults=source.faults)


def _coco_online(source: Source) -> Splits:
    """COCO's online server: val joins train, test is for validation, test2014 is captioned.

    As the reference's `mscoco_online_test`. The images of test2014 are those of
    `image_info_test2014.json`, of a list `test2014_ids.txt`, or of the folder `test2014`.
    """
    splits = _karpathy(source)
    moved = [dataclasses.replace(record, split="train") for record in splits["val"]]
    val = [dataclasses.replace(record, split="val") for record in splits["test"]]
    return {"train": splits["train"] + moved, "val": val, "test": _test2014(source)}


def _test2014(source: Source) -> list[Record]:
    top = source.directory
    for path in (top / "image_info_test2014.json", top / "annotations/image_info_test2014.json"):
        if path.exists():
            return load_image_info(path, source.faults)
    if (top / "test2014_ids.txt").exists():
        return [Record(i, folder="test2014") for i in read_id_list(top / "test2014_ids.txt")]
    for folder in (top / "images/test2014", top / "test2014"):
        if folder.is_dir():
            names = sorted(path.name for path in folder.glob("*.jpg"))
            return [Record(image_id_from_filename(n), "test", n, folder="test2014") for n in names]
    raise DataError(
        f"{top}: no images of test2014; expected image_info_test2014.json, test2014_ids.txt or a "
        "folder test2014/"
    )


def _coco_json(source: Source) -> Splits:
    """COCO annotation files by the split in their names, cut anew by id lists if there are any."""
    top = source.directory
    if source.split_json:
        paths = {"test": [top / source.split_json]}
    else:
        folder = top / "annotations" if (top / "annotations").is_dir() else top
        paths = {split: sorted(folder.glob(f"captions_{split}*.json")) for split in SPLITS}
        if not any(paths.values()):
            raise DataError(f"{folder}: no captions_train*.json, captions_val*.json")
    lists = {split: top / f"{split}_ids.txt" for split in SPLITS}
    ids = {split: read_id_list(path) for split, path in lists.items() if path.exists()}
    check_disjoint(ids)
    return load_coco_json(paths, text=source.text, ids=ids, faults=source.faults)


def _flickr8k(source: Source) -> Splits:
    """Flickr8k's token file and lists of pictures."""
    return load_flickr_tokens(source.directory, text=source.text, faults=source.faults)


def _instapic(source: Source) -> Splits:
    """InstaPIC-1.1M's caption lists; `split_json` names the test file."""
    test = {"test": source.split_json} if source.split_json else {}
    return load_instapic(source.directory, text=source.text, faults=source.faults, **test)


def _photos(source: Source) -> Splits:
    """`captions.json` beside `images/`."""
    path = source.directory / (source.split_json or "captions.json")
    return load_photo_folder(path, text=source.text, faults=source.faults)


def _tfds(source: Source) -> Splits:
    """A folder that tensorflow-datasets prepared (`coco_builder`)."""
    path = source.directory / "metadata.json"
    return load_karpathy(path, text=source.text, faults=source.faults)


def _split_json(source: Source) -> pathlib.Path:
    directory = source.directory
    if source.split_json:
        return directory / source.split_json
    found = sorted(directory.glob("dataset_*.json"))
    if len(found) != 1:
        raise DataError(
            f"{directory}: {len(found)} files dataset_*.json; expected one (or its name in "
            "config.data.split_json)"
        )
    return found[0]


DATASETS: Registry[Callable[[Source], Splits]] = Registry(
    "data.name",
    {
        "coco_json": _coco_json,
        "coco_online": _coco_online,
        "flickr8k": _flickr8k,
        "instapic": _instapic,
        "karpathy": _karpathy,
        "photos": _photos,
        "tfds": _tfds,
        **dict.fromkeys(TOY, _karpathy),
    },
)
