"""Datasets by name: records of every split, the features' store, and the folder of the pictures.

To add one: a function from a `Source` to `Contents` that `DATASETS.register` takes, or that is
named as `MODULE:NAME` after `settings.use_plugin(MODULE)`.
"""

import dataclasses
import functools
import logging
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from sparsecap_jax.data import caption_files
from sparsecap_jax.data.cache import CachedStore
from sparsecap_jax.data.features import FeatureStore
from sparsecap_jax.data.imagined import PHOTOS, load_imagined
from sparsecap_jax.data.karpathy import load_karpathy
from sparsecap_jax.data.records import (
    SPLITS,
    Faults,
    Record,
    Source,
    Splits,
    check_text,
    image_id_from_filename,
)
from sparsecap_jax.data.stores import open_store
from sparsecap_jax.data.stores.array_records import TFDS_INFO
from sparsecap_jax.errors import DataError
from sparsecap_jax.files import absent, read_json
from sparsecap_jax.settings import Registry

logger = logging.getLogger(__name__)


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
class Contents:
    """Result of a dataset's function.

    Attributes:
        splits: records of "train", "val" and "test".
        directory: folder of `images/` and, unless features lie elsewhere, of the features.
        extend: makes the dataset's store of the store of the features on disk.
    """

    splits: Splits
    directory: pathlib.Path
    extend: Callable[[FeatureStore], FeatureStore] = lambda store: store


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
        split_json: see `Source`.
        text: see `Source`.
        skip_bad: leave out bad entries, log and count them, instead of stopping at the first one.

    Raises:
        ConfigError: there is no dataset of that name.
        DataError: its files are missing or malformed.
    """
    return DATASETS[name](Source(directory, split_json, text, Faults(skip_bad))).splits


def load_dataset(config: ConfigDict | Mapping[str, Any], *, need_boxes: bool = False) -> Dataset:
    """Open the dataset that the section `data` of a config names; errors as in `load_splits`.

    Images without boxes are an error with `need_boxes`.
    """
    source = Source(
        config["dir"],
        config["split_json"],
        "raw" if config["raw_captions"] else "tokens",
        Faults(config["skip_bad"], "--config.data.skip_bad"),
        config.get("mixture", ""),
        may_create=True,
    )
    try:
        contents = DATASETS[config["name"]](source)
    except DataError as error:
        raise DataError(f"{error}{_advice(config['name'], source.path)}") from error
    stored = open_store(
        config["features"] or contents.directory,
        config["feature_size"],
        need_boxes,
        sizes=config["image_sizes"],
        format=config["features_format"],
    )
    cached = CachedStore(
        stored,
        max_bytes=int(config["cache_gb"] * 2**30),
        min_free_ram=config["cache_min_free_ram"],
        dtype=config["cache_dtype"],
    )
    store, splits = contents.extend(cached), contents.splits
    if config["skip_bad"]:
        splits = _with_features(splits, store, stored.path)
    return Dataset(splits, store, contents.directory / "images")


def stated_licence(config: ConfigDict | Mapping[str, Any]) -> str:
    """Return the licence of a dataset, "" where nothing states it.

    It is the field `licence` of the section `data`, else that of the dataset's description: the
    text `licence` (or `license`) next to "images" in captions.json or dataset_*.json.

    Raises:
        DataError: such a file is broken.
    """
    if config.get("licence"):
        return config["licence"]
    folder = pathlib.Path(config["dir"] or toy_scenes_dir(config["name"]))
    for path in sorted(folder.glob(_SIGNS.get(config["name"], _SIGNS["karpathy"]))):
        content = read_json(path) if path.suffix == ".json" else None
        for name in ("licence", "license"):
            if isinstance(content, dict) and isinstance(content.get(name), str):
                return check_text(content[name], f"{path}: {name}")[:1000]
    return ""


def _advice(name: str, folder: str | os.PathLike) -> str:
    """Return what to try where a folder could not be read as dataset `name`."""
    path = pathlib.Path(folder)
    if not path.is_dir():
        return "; --config.data.dir=DIR and --config.data.name=NAME name another dataset"
    fitting = [other for other, pattern in _SIGNS.items() if any(path.glob(pattern))]
    if name not in _SIGNS or name in fitting:
        return ""
    if not fitting:
        return "; --config.data.name=NAME reads another kind: photos with captions.json, say"
    return f"; {path} looks like {' or '.join(fitting)}: try --config.data.name={fitting[0]}"


def _with_features(splits: Splits, store: Any, path: pathlib.Path) -> Splits:
    """Leave out records without features, and log their number."""
    kept = {name: [r for r in rs if r.image_id in store] for name, rs in splits.items()}
    for name, records in splits.items():
        missing = len(records) - len(kept[name])
        if missing:
            message = "%s: %d of %d %s images have no features and are left out"
            logger.warning(message, path, missing, len(records), name)
    return kept


def toy_scenes_dir(name: str = "toy") -> pathlib.Path:
    """Return the default folder of toy scenes of a name, below the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "sparsecap_jax" / name.replace("toy", "toy_scenes")


def _karpathy(source: Source) -> Splits:
    """Read a Karpathy split JSON: COCO, Flickr8k, Flickr30k, toy scenes."""
    directory = source.directory
    files = [directory / source.split_json] if source.split_json else []
    files = files or sorted(directory.glob("dataset_*.json"))
    if len(files) != 1:
        raise DataError(
            f"{directory}: {len(files)} files dataset_*.json; expected one (or its name in "
            "config.data.split_json)"
        )
    return load_karpathy(files[0], text=source.text, faults=source.faults)


def _toy(source: Source, name: str, **options: Any) -> Contents:
    """Read toy scenes, which `make_toy_scenes` draws with `options` where it may."""
    if source.may_create:
        from sparsecap_jax.data.toy_scenes import make_toy_scenes

        directory = make_toy_scenes(source.path or toy_scenes_dir(name), **options)
        source = dataclasses.replace(source, path=directory)
    return _in_folder(source, _karpathy)


def _imagined(source: Source) -> Contents:
    """Read photos, and captions with imagined features (`sparsecap prepare_data imagine`)."""
    splits, extend = load_imagined(source.directory, source.mixture)
    return Contents(splits, source.directory, extend)


def _coco_online(source: Source) -> Splits:
    """Read the splits of COCO's online server: val joins train, test is for validation.

    Images of test2014 are captioned, as in the reference's `mscoco_online_test`: those of
    `image_info_test2014.json`, of a list `test2014_ids.txt`, or of the folder `test2014`.
    """
    splits = _karpathy(source)
    moved = [dataclasses.replace(record, split="train") for record in splits["val"]]
    val = [dataclasses.replace(record, split="val") for record in splits["test"]]
    splits = {"train": splits["train"] + moved, "val": val, "test": _test2014(source)}
    ids = {name: [record.image_id for record in records] for name, records in splits.items()}
    caption_files.check_disjoint(ids, source.directory)
    return splits


def _test2014(source: Source) -> list[Record]:
    top = source.directory
    for path in (top, top / "annotations"):
        if (path / "image_info_test2014.json").exists():
            return caption_files.load_image_info(path / "image_info_test2014.json", source.faults)
    path = top / "test2014_ids.txt"
    if path.exists():
        return [Record(i, folder="test2014") for i in caption_files.read_id_list(path)]
    for folder in (top / "images/test2014", top / "test2014"):
        if folder.is_dir():
            names = sorted(path.name for path in folder.glob("*.jpg"))
            return [Record(image_id_from_filename(n), "test", n, folder="test2014") for n in names]
    raise DataError(
        f"{top}: no images of test2014; expected image_info_test2014.json, test2014_ids.txt or a "
        "folder test2014/"
    )


def _coco_json(source: Source) -> Splits:
    """Read COCO annotation files by the split in their names, or by id lists if there are any."""
    top = source.directory
    if source.split_json:
        paths = {"test": [top / source.split_json]}
    else:
        folder = top / "annotations" if (top / "annotations").is_dir() else top
        paths = {split: sorted(folder.glob(f"captions_{split}*.json")) for split in SPLITS}
        if not any(paths.values()):
            raise DataError(f"{folder}: no captions_train*.json, captions_val*.json")
    lists = {split: path for split in SPLITS if (path := top / f"{split}_ids.txt").exists()}
    ids = {split: caption_files.read_id_list(path) for split, path in lists.items()}
    caption_files.check_disjoint(ids, top)
    return caption_files.load_coco_json(paths, text=source.text, ids=ids, faults=source.faults)


def _tfds(source: Source) -> Splits:
    """Read a folder that tensorflow-datasets prepared (`coco_builder`)."""
    return _karpathy(dataclasses.replace(source, split_json="metadata.json"))


def _in_folder(source: Source, read: Callable[[Source], Splits]) -> Contents:
    """Return the records that `read` finds, with the source's folder, which must exist."""
    if not source.directory.is_dir():
        raise DataError(absent(source.directory, "the folder of a dataset"))
    return Contents(read(source), source.directory)


_READERS = {
    "coco_json": _coco_json,
    "coco_online": _coco_online,
    "flickr8k": caption_files.load_flickr_tokens,
    "instapic": caption_files.load_instapic,
    "karpathy": _karpathy,
    "photos": caption_files.load_photo_folder,
    "tfds": _tfds,
}
# Files that show which dataset a folder holds, of those that have some.
_SIGNS = {
    "photos": "captions.json",
    "imagined": PHOTOS,
    "karpathy": "dataset_*.json",
    "tfds": TFDS_INFO,
    "flickr8k": "*.token*",
    "coco_json": "annotations/captions_*.json",
}
_TOYS: dict[str, dict[str, Any]] = {
    "toy": {},
    "toy_boxes": {"boxes_only": True},
    "toy_plain": {"plain": True},
    "toy_plain_boxes": {"plain": True, "boxes_only": True},
    # With 2,000 scenes even plain box geometry learns it less well.
    "toy_near": {"near": True, "boxes_only": True, "sizes": (6000, 200, 200)},
}
DATASETS: Registry[Callable[[Source], Contents]] = Registry(
    "data.name",
    {
        "imagined": _imagined,
        **{name: functools.partial(_in_folder, read=read) for name, read in _READERS.items()},
        **{name: functools.partial(_toy, name=name, **options) for name, options in _TOYS.items()},
    },
)
