"""Everything a run is made of, built from its config."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable

import jax
import optax
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sparsecap_jax.data.datasets import Dataset, load_dataset
from sparsecap_jax.data.pipeline import TrainIterator, make_train_iterator, steps_per_epoch
from sparsecap_jax.errors import CheckpointError, ConfigError
from sparsecap_jax.files import read_json, write_atomically, write_json
from sparsecap_jax.models import MODELS, make_model
from sparsecap_jax.pruning import Pruner, make_pruner
from sparsecap_jax.runs.checkpoints import Checkpoints
from sparsecap_jax.runs.config import changed_fields, from_dict, model_config, to_json, validate
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
    config: ConfigDict,
    workdir: str | pathlib.Path,
    dataset: Dataset | None = None,
    report: Callable[[str], None] = print,
) -> Run:
    """Check the config, claim the run directory and build all parts.

    A new directory gets `config.json` and `tokenizer/`; one that has them is continued. `dataset`
    is the one of `config.data`, where it is open already.

    Raises:
        ConfigError: the config is faulty, or one that the run cannot continue with.
        DataError: the data are missing or malformed.
    """
    validate(config)
    workdir = pathlib.Path(workdir)
    check_workdir(config, workdir)
    model_class = MODELS[config.model.name]
    if dataset is None:
        dataset = load_dataset(config.data, need_boxes=model_class.needs_boxes)
    _check_start(config)
    epoch = steps_per_epoch(len(dataset.splits["train"]), config.data.batch_size)
    if epoch < 1:
        images = len(dataset.splits["train"])
        raise ConfigError(
            f"config.data.batch_size is {config.data.batch_size}; only {images} images"
        )
    total = config.train.steps or config.train.epochs * epoch
    _check_length(workdir, total)
    # Only now: a wrong path must not leave a directory that refuses the right one.
    claim_workdir(config, workdir, report)
    tokenizer = prepare_tokenizer(config, workdir, dataset)
    _note_extractor(config, workdir)
    model = make_model(model_config(config, tokenizer.vocab_size))
    pruner = make_pruner(config.pruner, total_steps=total, steps_per_epoch=epoch)
    width = getattr(model, "d_model", None)
    tx = make_optimizer(config.optimizer, total, epoch, pruner.trains_masks, width)
    mesh = make_mesh(config.train.devices, config.data.batch_size)
    return Run(
        config, workdir, dataset, tokenizer, model, pruner, tx, mesh, epoch, total
    )  # fmt: skip


def check_workdir(config: ConfigDict, workdir: pathlib.Path) -> list[str]:
    """Return how a config differs from the one that a run directory was begun with.

    Raises:
        ConfigError: it differs in fields that may not change while a run continues; the message
            says which.
    """
    path = workdir / "config.json"
    if not path.exists():
        return []
    allowed, refused = changed_fields(from_dict(read_json(path), str(path)), config)
    if refused:
        raise ConfigError(
            f"{path}: this run was begun with another config ({'; '.join(refused)}); "
            "expected the same, or a new --workdir"
        )
    return allowed


def claim_workdir(
    config: ConfigDict, workdir: pathlib.Path, report: Callable[[str], None] = print
) -> None:
    """Write `config.json` into a new run directory, or update it where a run continues.

    Raises:
        ConfigError: see `check_workdir`.
    """
    path = workdir / "config.json"
    changes = check_workdir(config, workdir)
    if changes:
        report(f"{path}: continuing with another config: {'; '.join(changes)}")
    if changes or not path.exists():
        with write_atomically(path) as file:
            file.write(to_json(config))


def _check_length(workdir: pathlib.Path, total_steps: int) -> None:
    """Refuse to continue a run that has more steps behind it than it shall have in all."""
    trained = 0
    # Before the first checkpoint there is none to read.
    with (
        contextlib.suppress(CheckpointError),
        contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints,
    ):
        trained = checkpoints.last_step()
    if trained > total_steps:
        raise ConfigError(
            f"config.train: {total_steps} steps in all, but {workdir} is trained for {trained}; "
            "expected as many or more"
        )


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
