"""Everything a run is made of, built from its config."""

import dataclasses
import math
import pathlib
from typing import Any

import jax
import optax
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sparsecap_jax.data.datasets import Dataset, load_dataset
from sparsecap_jax.data.pipeline import TrainIterator, make_train_iterator, steps_per_epoch
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.files import read_json, write_atomically, write_json
from sparsecap_jax.models import MODELS, make_model
from sparsecap_jax.pruning import Pruner, make_pruner
from sparsecap_jax.runs.config import from_dict, model_config, to_json, validate
from sparsecap_jax.runs.directory import EXTRACTOR
from sparsecap_jax.tokenizers import Tokenizer, make_tokenizer, train_tokenizer
from sparsecap_jax.training.optimizers import make_optimizer
from sparsecap_jax.training.steps import make_mesh


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of a run; `config` has been checked."""

    config: ConfigDict
    workdir: pathlib.Path
    dataset: Dataset
    tokenizer: Tokenizer
    model: nn.Module
    pruner: Pruner
    tx: optax.GradientTransformation
    mesh: Mesh
    steps_per_epoch: int
    total_steps: int

    @property
    def eval_every(self) -> int:
        """Steps between validations."""
        return self.config.train.eval_every or self.steps_per_epoch

    @property
    def scst_start(self) -> int:
        """Step from which captions are rewarded; beyond the end where they never are."""
        epoch = self.config.scst.start_epoch
        return epoch * self.steps_per_epoch if epoch >= 0 else self.total_steps

    def train_iterator(self) -> TrainIterator:
        """A fresh iterator over the training split."""
        data = self.config.data
        return make_train_iterator(
            self.dataset.splits["train"],
            self.dataset.store,
            self.tokenizer,
            batch_size=data.batch_size,
            seq_per_img=data.seq_per_img,
            max_seq_length=self.config.max_seq_length,
            region_buckets=data.region_buckets,
            seed=self.config.seed,
            prefetch=data.prefetch,
            num_threads=data.num_threads,
            num_workers=data.num_workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )


def prepare_run(
    config: ConfigDict, workdir: str | pathlib.Path, dataset: Dataset | None = None
) -> Run:
    """Check the config, claim the run directory and build all parts.

    A new directory gets `config.json` and `tokenizer/`; one that has them is continued. `dataset`
    is the one of `config.data`, where it is open already.

    Raises:
        ConfigError: the config is faulty, or differs from the one the directory was begun with.
        DataError: the data are missing or malformed.
    """
    validate(config)
    workdir = pathlib.Path(workdir)
    if (workdir / "config.json").exists():
        claim_workdir(config, workdir)
    model_class = MODELS[config.model.name]
    if dataset is None:
        dataset = load_dataset(config.data, need_boxes=model_class.needs_boxes)
    _check_start(config)
    # Only now: a wrong path must not leave a directory that refuses the right one.
    claim_workdir(config, workdir)
    tokenizer = prepare_tokenizer(config, workdir, dataset)
    _note_extractor(config, workdir)
    model = make_model(model_config(config, tokenizer.vocab_size))
    epoch = steps_per_epoch(len(dataset.splits["train"]), config.data.batch_size)
    if epoch < 1:
        images = len(dataset.splits["train"])
        raise ConfigError(
            f"config.data.batch_size is {config.data.batch_size}; only {images} images"
        )
    total = config.train.steps or config.train.epochs * epoch
    pruner = make_pruner(config.pruner, total_steps=total, steps_per_epoch=epoch)
    tx = make_optimizer(config.optimizer, total, epoch, pruner.trains_masks)
    mesh = make_mesh(config.train.devices, config.data.batch_size)
    return Run(
        config, workdir, dataset, tokenizer, model, pruner, tx, mesh, epoch, total
    )  # fmt: skip


def claim_workdir(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Write `config.json` into a new run directory, or check that it is the same.

    Raises:
        ConfigError: the directory belongs to a run of another config; the message says which
            fields differ.
    """
    path = workdir / "config.json"
    if path.exists():
        begun = from_dict(read_json(path), str(path))
        differing = _differences(begun.to_dict(), config.to_dict())
        if differing:
            raise ConfigError(
                f"{path}: this run was begun with another config ({'; '.join(differing)}); "
                "expected the same, or a new --workdir"
            )
        return
    with write_atomically(path) as file:
        file.write(to_json(config))


def _check_start(config: ConfigDict) -> None:
    start = config.train.init_from
    if start and not (pathlib.Path(start) / "config.json").exists():
        raise ConfigError(
            f"config.train.init_from is {start!r}: no run directory: config.json is missing"
        )


def prepare_tokenizer(config: ConfigDict, workdir: pathlib.Path, dataset: Dataset) -> Tokenizer:
    """Load the run's tokenizer, or make it where there is none yet.

    A warm start takes the tokenizer of the run it starts from, whose embeddings it goes on with;
    otherwise one is trained on the training captions.
    """
    directory = workdir / "tokenizer"
    source = pathlib.Path(config.train.init_from) / "tokenizer"
    if not directory.exists() and config.train.init_from and source.is_dir():
        make_tokenizer(config.tokenizer, source).save(directory)
    if not directory.exists():
        captions = (text for record in dataset.splits["train"] for text in record.captions)
        return train_tokenizer(config.tokenizer, captions, directory)
    return make_tokenizer(config.tokenizer, directory)


def _note_extractor(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Keep what made the features, so that the trained run can caption photos."""
    path = pathlib.Path(config.data.dir) / EXTRACTOR
    if config.data.dir and path.exists():
        write_json(workdir / EXTRACTOR, read_json(path))


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{key}.")
        elif a != b and not (isinstance(a, float) and isinstance(b, float) and math.isclose(a, b)):
            found.append(f"{prefix}{key} was {a!r}, is {b!r}")
    return found
