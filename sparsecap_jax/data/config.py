"""Section `data` of a config: which data, and how they are read."""

import dataclasses
from typing import Annotated, Literal

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.settings import MAY_CHANGE, Range


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Section `data` of a config.

    Attributes:
        name: dataset (docs/data.md): a key of `data.datasets.DATASETS`.
        dir: folder of the dataset, with its split JSON and `bu/`.
        split_json: name of the split JSON in `dir`, or its path; "": the only dataset_*.json.
        features: file or folder of features; "": `dir`.
        features_format: a key of `data.stores.STORES`; `auto` looks at the files.
        image_sizes: JSON or folder of image sizes, for formats with boxes in pixels.
        feature_size: width of a region's features.
        batch_size: images per step, times `train.accumulate`.
        seq_per_img: captions per image and step.
        eval_batch_size: images decoded at a time in validation and evaluation.
        region_buckets: numbers of regions that images are padded to, growing; beyond the largest,
            the next of the default ones or a multiple of 100.
        cache_gb: memory in GiB for features that were read before.
        licence: licence of the captions and pictures, for the model card; "" for what the dataset
            says of itself.
        mixture: how often an epoch of `imagined` sees each source, `source=times,...`.
        cache_min_free_ram: fraction of the machine's memory that the cache leaves free.
        cache_dtype: type of the cached features; float16 holds twice as many, rounded.
        prefetch: batches prepared ahead.
        num_threads: threads that read features; more than one helps slow disks.
        num_workers: processes that read features instead, where Python is too slow; 0: none.
        raw_captions: tokenise the captions as written instead of the split's own tokens.
        skip_bad: leave out bad entries, counted in the log, instead of stopping at the first.
    """

    name: str = "karpathy"
    dir: Annotated[str, MAY_CHANGE] = ""
    split_json: Annotated[str, MAY_CHANGE] = ""
    features: Annotated[str, MAY_CHANGE] = ""
    features_format: Annotated[str, MAY_CHANGE] = "auto"
    image_sizes: Annotated[str, MAY_CHANGE] = ""
    feature_size: Annotated[int, Range(1)] = 2048
    batch_size: Annotated[int, Range(1)] = 15
    seq_per_img: Annotated[int, Range(1, 1000)] = 5
    eval_batch_size: Annotated[int, Range(1), MAY_CHANGE] = 50
    region_buckets: Annotated[tuple[int, ...], Range(1)] = (16, 36, 64, 100)
    cache_gb: Annotated[float, Range(0), MAY_CHANGE] = 8.0
    licence: Annotated[str, MAY_CHANGE] = ""
    mixture: str = ""
    cache_min_free_ram: Annotated[float, Range(0, 1), MAY_CHANGE] = 0.4
    cache_dtype: Literal["float32", "float16"] = "float32"
    prefetch: Annotated[int, Range(0, 1000), MAY_CHANGE] = 2
    num_threads: Annotated[int, Range(1, 1000), MAY_CHANGE] = 1
    num_workers: Annotated[int, Range(0, 1000), MAY_CHANGE] = 0
    raw_captions: bool = False
    skip_bad: bool = False

    def __post_init__(self):
        from sparsecap_jax.data.datasets import DATASETS
        from sparsecap_jax.data.stores import STORES

        _ = DATASETS[self.name]
        if self.features_format != "auto":
            _ = STORES[self.features_format]
        buckets = self.region_buckets
        if not buckets or buckets != tuple(sorted(set(buckets))):
            raise ConfigError(f"data.region_buckets is {buckets}; expected growing numbers")
