"""Datasets by name: records of every split, the features' store, and where the pictures lie.

To add one: a function from `config.data` to a `Dataset`, and a line in `DATASETS`.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from sparsecap_jax.data.cache import CachedStore
from sparsecap_jax.data.features import FeatureStore, NpyFolderStore
from sparsecap_jax.data.karpathy import Record, load_karpathy
from sparsecap_jax.errors import ConfigError, DataError

Section = ConfigDict | Mapping[str, Any]


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


def load_dataset(config: Section, *, need_boxes: bool = False) -> Dataset:
    """Open the dataset that `config` (`config.data`) names.

    Args:
        config: the section `data` of a config.
        need_boxes: whether the model reads boxes; images without them are an error then.

    Raises:
        ConfigError: there is no dataset of that name, or its folder is not given.
        DataError: its files are missing or malformed.
    """
    if config["name"] not in DATASETS:
        known = ", ".join(sorted(DATASETS))
        raise ConfigError(f"config.data.name is {config['name']!r}; expected one of {known}")
    return DATASETS[config["name"]](config, need_boxes)


def toy_scenes_dir() -> pathlib.Path:
    """Where toy scenes are kept when no folder is given: below the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "sparsecap_jax" / "toy_scenes"


def _karpathy(config: Section, need_boxes: bool) -> Dataset:
    """A Karpathy split JSON beside folders of `.npy` features."""
    if not config["dir"]:
        raise ConfigError("config.data.dir is empty; expected the folder of the split JSON and bu/")
    directory = pathlib.Path(config["dir"])
    text = "raw" if config["raw_captions"] else "tokens"
    splits = load_karpathy(_split_json(directory, config["split_json"]), text=text)
    store = NpyFolderStore(directory, config["feature_size"], need_boxes)
    cached = CachedStore(store, max_bytes=int(config["cache_gb"] * 2**30))
    return Dataset(splits, cached, directory / "images")


def _toy(config: Section, need_boxes: bool) -> Dataset:
    """The embedded scenes, made on first use."""
    from sparsecap_jax.data.toy_scenes import make_toy_scenes

    directory = make_toy_scenes(config["dir"] or toy_scenes_dir())
    return _karpathy({**config, "dir": directory}, need_boxes)


def _split_json(directory: pathlib.Path, name: str) -> pathlib.Path:
    if name:
        return directory / name
    found = sorted(directory.glob("dataset_*.json"))
    if len(found) != 1:
        raise DataError(
            f"{directory}: {len(found)} files dataset_*.json; expected one (or its name in "
            "config.data.split_json)"
        )
    return found[0]


DATASETS: dict[str, Callable[[Section, bool], Dataset]] = {
    "karpathy": _karpathy,
    "toy": _toy,
}
