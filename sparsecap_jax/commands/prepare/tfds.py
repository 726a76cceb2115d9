"""Prepare captions and features as a tensorflow-datasets folder (ArrayRecord, no TensorFlow).

sparsecap prepare_data tfds --manual_dir=data/coco --data_dir=data/tfds --boxes

The manual directory holds the captions of a dataset (dataset_coco.json by default) and its
features, in any known format. Train on the folder that is printed with --config.data.name=tfds and
--config.data.dir; any program that uses tfds opens it.
"""

import dataclasses
import pathlib
from typing import Any

from absl import flags

from sparsecap_jax.commands.prepare.convert import define_width, width_of
from sparsecap_jax.data.datasets import DATASETS
from sparsecap_jax.errors import DataError
from sparsecap_jax.files import absent


def define() -> None:
    """Define the flags."""
    flags.DEFINE_string("manual_dir", None, "Folder to read.", required=True)
    flags.DEFINE_string("data_dir", None, "Folder to write to.", required=True)
    flags.DEFINE_string("dataset", "karpathy", f"Its format: {', '.join(sorted(DATASETS))}.")
    flags.DEFINE_string("split_json", "", "Its main file, where there is a choice.")
    flags.DEFINE_string("features", "", "Features, relative to --manual_dir.")
    flags.DEFINE_string("image_sizes", "", "Image sizes, relative to it.")
    define_width()
    flags.DEFINE_bool("boxes", False, "Keep boxes too.")


def run(args: flags.FlagValues) -> None:
    """Prepare; DataError where captions or features are missing or malformed."""
    from tensorflow_datasets import disable_progress_bar, download

    from sparsecap_jax.data.coco_builder import CaptionConfig, CaptionFeatures

    manual_dir = pathlib.Path(args.manual_dir)
    if not manual_dir.is_dir():
        raise DataError(absent(manual_dir, "a folder of captions"))
    if not any(manual_dir.iterdir()):
        raise DataError(f"{manual_dir}: an empty folder; expected captions")
    disable_progress_bar()
    name = "coco" if args.dataset == "karpathy" else args.dataset
    names = [field.name for field in dataclasses.fields(CaptionConfig) if field.name in args]
    values: dict[str, Any] = {field: args[field].value for field in names}
    values["feature_size"] = width_of(args, manual_dir / args.features)
    config = CaptionConfig(name=name, **values)
    builder = CaptionFeatures(data_dir=args.data_dir, config=config)
    manual = download.DownloadConfig(manual_dir=str(pathlib.Path(args.manual_dir).resolve()))
    builder.download_and_prepare(download_config=manual)
    counts = {name: split.num_examples for name, split in builder.info.splits.items()}
    print(f"prepared {builder.data_path}: {counts}")
