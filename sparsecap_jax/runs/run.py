"""A run: its parts, built from its config."""

import contextlib
import dataclasses
import functools
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sparsecap_jax.captioning.image_options import decode_options
from sparsecap_jax.captioning.search import SearchOptions
from sparsecap_jax.data.datasets import Dataset, load_dataset
from sparsecap_jax.data.pipeline import TrainIterator, make_train_iterator, steps_per_epoch
from sparsecap_jax.errors import CheckpointError, ConfigError
from sparsecap_jax.files import read_json, write_atomically, write_json
from sparsecap_jax.models import make_model, model_class
from sparsecap_jax.pruning import Pruner, make_pruner
from sparsecap_jax.runs.checkpoints import Checkpoints
from sparsecap_jax.runs.config import changed_fields, from_dict, model_config, to_json, validate
from sparsecap_jax.runs.directory import EXTRACTOR
from sparsecap_jax.scst.config import parse as parse_scst
from sparsecap_jax.scst.document_frequency import DocumentFrequency, count_documents
from sparsecap_jax.scst.guard import check_document_frequency
from sparsecap_jax.scst.rewards import make_rewards
from sparsecap_jax.settings import build
from sparsecap_jax.tokenizers import Tokenizer, make_tokenizer, train_tokenizer
from sparsecap_jax.training import scheduled_sampling
from sparsecap_jax.training.objectives import OBJECTIVES, Objective, SelfCritical, Task
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
    objectives: Mapping[int, Callable[[], Objective]]

    def objective_at(self, step: int) -> Objective:
        """Return the objective of the step that follows `step` finished ones."""
        return self.objectives[max(start for start in self.objectives if start <= step)]()

    def next_change(self, step: int) -> int:
        """Return the first step beyond `step` with another objective; `total_steps` if none."""
        return min((start for start in self.objectives if start > step), default=self.total_steps)

    @property
    def eval_every(self) -> int:
        """Steps between validations."""
        return self.config.train.eval_every or self.steps_per_epoch

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
    captioner = model_class(config.model.name)
    if dataset is None:
        dataset = load_dataset(config.data, need_boxes=getattr(captioner, "needs_boxes", False))
    epoch = _epoch(config, dataset)
    total = config.train.steps or config.train.epochs * epoch
    _check_length(workdir, total)
    pruner = make_pruner(config.pruner, total_steps=total, steps_per_epoch=epoch)
    width = config.model.get("d_model")
    tx = make_optimizer(config.optimizer, total, epoch, pruner.trains_masks, width)
    mesh = make_mesh(config.train.devices, config.data.batch_size)
    _check_start(config, pruner)
    # Only now: a faulty config must not leave a directory that refuses the mended one.
    claim_workdir(config, workdir, report)
    tokenizer = prepare_tokenizer(config, workdir, dataset)
    _note_extractor(config, workdir)
    model = make_model(model_config(config, tokenizer.vocab_size))
    captions = [record.captions for record in dataset.splits["train"]]
    task = Task(
        model,
        tokenizer,
        captions,
        config.max_seq_length,
        mesh.size,
        epoch,
        config.train.label_smoothing,
        scheduled_sampling.parse(config.train, model),
    )
    objectives = make_objectives(config, task, total, report)
    return Run(
        config, workdir, dataset, tokenizer, model, pruner, tx, mesh, epoch, total, objectives
    )  # fmt: skip


def make_objectives(
    config: ConfigDict, task: Task, total_steps: int, report: Callable[[str], None]
) -> dict[int, Callable[[], Objective]]:
    """Return the objectives of a run by the step that they start at, each made when needed.

    Raises:
        ConfigError: a setting is wrong, or document frequencies are of word numbers.
        DataError: document frequencies cannot be read.
    """
    plain = build_objective(config.objective, task)
    first = config.scst.start_epoch * task.steps_per_epoch
    if first < 0 or first >= total_steps:
        return {0: lambda: plain}
    rewarded = functools.cache(lambda: _self_critical(config, task, report))
    return {0: lambda: plain, first: rewarded}


def build_objective(section: Any, task: Task | None) -> Objective:
    """Build the objective of the section `objective`; without a task, to check its settings.

    Raises:
        ConfigError: an unknown name, or settings that it does not have.
    """
    fields = {key: value for key, value in section.items() if key != "name"}
    return build(OBJECTIVES[section.name], fields, "objective", task=task)


def _self_critical(config: ConfigDict, task: Task, report: Callable[[str], None]) -> SelfCritical:
    settings = parse_scst(config.scst)
    if settings.document_frequency:
        frequency = DocumentFrequency.load(settings.document_frequency)
        warning = check_document_frequency(frequency, task.references, settings.document_frequency)
        if warning:
            logging.getLogger(__name__).warning("%s", warning)
            report(f"*** {warning}")
    else:
        frequency = count_documents(task.references, dataset="training split")
    return SelfCritical(
        task=task,
        config=settings,
        rewards=make_rewards(settings.weights, frequency, task.references, task.tokenizer),
        options=decode_options(SearchOptions(search="greedy"), task.tokenizer, task.max_length),
    )


def _epoch(config: ConfigDict, dataset: Dataset) -> int:
    images = len(dataset.splits["train"])
    epoch = steps_per_epoch(images, config.data.batch_size)
    if epoch < 1:
        raise ConfigError(
            f"config.data.batch_size is {config.data.batch_size}; expected at most {images}, the "
            "number of training images"
        )
    return epoch


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


def _check_start(config: ConfigDict, pruner: Pruner) -> None:
    """Check that the run to start from exists, and is named where one is needed."""
    start = config.train.init_from
    if start:
        if not (pathlib.Path(start) / "config.json").exists():
            raise ConfigError(
                f"config.train.init_from is {start!r}: no run directory: config.json is missing"
            )
        return
    first = SelfCritical if config.scst.start_epoch == 0 else OBJECTIVES[config.objective.name]
    reason = first.needs_trained
    if pruner.rewinds or pruner.needs_masks:
        reason = f"pruner {pruner.name!r} starts from another run"
    if reason:
        raise ConfigError(f"{reason}; expected a trained run in config.train.init_from")


def prepare_tokenizer(config: ConfigDict, workdir: pathlib.Path, dataset: Dataset) -> Tokenizer:
    """Load the run's tokenizer, or make it where there is none yet.

    A warm start takes the tokenizer of the run it starts from, whose embeddings it keeps;
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
