"""A run: its parts, built from its config."""

import contextlib
import dataclasses
import functools
import logging
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optax
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sparsecap_jax.captioning.image_options import decode_options
from sparsecap_jax.captioning.search import SearchOptions
from sparsecap_jax.data.datasets import Dataset, load_dataset
from sparsecap_jax.data.extractor_notes import EXTRACTOR, noted_settings
from sparsecap_jax.data.pipeline import TrainIterator, make_train_iterator, steps_per_epoch
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.files import read_settings, write_atomically, write_json
from sparsecap_jax.models import abstract_params, make_model, model_class
from sparsecap_jax.pruning import Pruner, make_pruner
from sparsecap_jax.runs import processes
from sparsecap_jax.runs.config import changed_fields, from_dict, model_config, to_json, validate
from sparsecap_jax.runs.finished import CONFIG, INITIAL_WEIGHTS, TOKENIZER
from sparsecap_jax.runs.published import resolve_run
from sparsecap_jax.scst.document_frequency import DocumentFrequency, count_documents
from sparsecap_jax.scst.guard import check_document_frequency
from sparsecap_jax.scst.rewards import make_rewards
from sparsecap_jax.tokenizers import Tokenizer, make_tokenizer, train_tokenizer
from sparsecap_jax.training.accumulation import accumulated
from sparsecap_jax.training.config import scheduled_sampling
from sparsecap_jax.training.objectives import OBJECTIVES, Objective, SelfCritical, Task
from sparsecap_jax.training.optimizers import make_optimizer
from sparsecap_jax.training.sharding import Placement, make_mesh


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of a run; `config` has been checked, and `report` takes a line of progress."""

    config: ConfigDict
    workdir: pathlib.Path
    dataset: Dataset
    tokenizer: Tokenizer
    model: nn.Module
    pruner: Pruner
    tx: optax.GradientTransformation
    placement: Placement
    steps_per_epoch: int
    total_steps: int
    objectives: Mapping[int, Callable[[], Objective]]
    made_tokenizer: bool
    report: Callable[[str], None]

    def objective_at(self, step: int) -> Objective:
        """Return the objective of the step that follows `step` finished ones."""
        return self.objectives[max(start for start in self.objectives if start <= step)]()

    def next_change(self, step: int) -> int:
        """Return the first step beyond `step` with another objective; `total_steps` if none."""
        return min((start for start in self.objectives if start > step), default=self.total_steps)

    @property
    def mesh(self) -> Mesh:
        """The devices."""
        return self.placement.mesh

    @property
    def images_per_step(self) -> int:
        """Images of all batches that one step computes."""
        return self.config.data.batch_size * self.config.train.accumulate

    @property
    def eval_every(self) -> int:
        """Steps between validations."""
        return self.config.train.eval_every or self.steps_per_epoch

    def train_iterator(self, *, whole: bool = False) -> TrainIterator:
        """A fresh iterator over this process' part of the training batches, or the whole ones."""
        config, data = self.config, self.config.data
        keys = "seq_per_img region_buckets prefetch num_threads num_workers"
        return make_train_iterator(
            self.dataset.splits["train"],
            self.dataset.store,
            self.tokenizer,
            **{key: data[key] for key in keys.split()},
            batch_size=self.images_per_step,
            max_seq_length=config.max_seq_length,
            seed=config.seed,
            process_index=0 if whole else processes.index(),
            process_count=1 if whole else processes.count(),
        )


def prepare_run(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    dataset: Dataset | None = None,
    report: Callable[[str], None] = print,
) -> Run:
    """Check the config and build all parts; arguments as in `loop.train`.

    A new directory gets its `tokenizer/`; one that has a run is continued.

    Raises:
        ConfigError: the config is faulty, or one that the run cannot continue with.
        DataError: the data are missing or malformed.
    """
    sections, workdir = validate(config), pathlib.Path(workdir)
    check_workdir(config, workdir)
    if dataset is None:
        captioner = model_class(config.model.name)
        with processes.first_ahead():  # it may have to be made
            dataset = load_dataset(config.data, need_boxes=getattr(captioner, "needs_boxes", False))
    images = len(dataset.splits["train"])
    batch, parts = config.data.batch_size, config.train.accumulate
    epoch = steps_per_epoch(images, batch * parts)
    if epoch < 1:
        times = f", times config.train.accumulate {parts}" if parts > 1 else ""
        raise ConfigError(
            f"config.data.batch_size is {batch}{times}; expected at most {images}, the number of "
            "training images"
        )
    total = config.train.steps or config.train.epochs * epoch
    trained = _check_length(workdir, total)
    pruner = make_pruner(config.pruner, total_steps=total, steps_per_epoch=epoch)
    tx = make_optimizer(
        sections["optimizer"], total, epoch, pruner.trains_masks, config.model.get("d_model")
    )
    processes.check_devices(config.train.devices, sections["mesh"])
    mesh = make_mesh(config.train.devices, batch, config.mesh.model)
    if not trained:
        _check_start(config, pruner)
    captions = [record.captions for record in dataset.splits["train"]]
    rewarded_from, frequency = config.scst.start_epoch * epoch, None
    if 0 <= rewarded_from < total:
        frequency = _document_frequency(config, captions, report)
    makes_tokenizer = not (workdir / TOKENIZER).exists()
    with processes.first_ahead():
        tokenizer = prepare_tokenizer(config, workdir, dataset)
    model = make_model(model_config(config, tokenizer.vocab_size))
    task = Task(
        model,
        tokenizer,
        captions,
        config.max_seq_length,
        mesh.shape["data"],
        processes.count(),
        processes.largest,
        epoch,
        config.train.label_smoothing,
        scheduled_sampling(config.train, model),
    )
    objectives = _objectives(sections, task, rewarded_from, frequency, mesh, parts)
    placement = Placement.of(mesh, sections["mesh"])
    if placement.rules:
        placement.specs(abstract_params(model))  # finds those that do not fit
    return Run(
        config, workdir, dataset, tokenizer, model, pruner, tx, placement, epoch, total, objectives,
        makes_tokenizer, report,
    )  # fmt: skip


def _objectives(
    sections: Mapping[str, Any],
    task: Task,
    rewarded_from: int,
    frequency: DocumentFrequency | None,
    mesh: Mesh,
    parts: int,
) -> dict[int, Callable[[], Objective]]:
    """Return the objectives of a run by the step that they start at, each made when needed."""
    settings, tokenizer = sections["scst"], task.tokenizer
    plain = accumulated(dataclasses.replace(sections["objective"], task=task), parts)

    if frequency is None:
        return {0: lambda: plain}
    assert tokenizer is not None

    @functools.cache
    def rewarded() -> Objective:
        objective = SelfCritical(
            task=task,
            config=settings,
            rewards=make_rewards(settings.weights, frequency, task.references, tokenizer, mesh),
            options=decode_options(SearchOptions(search="greedy"), tokenizer, task.max_length),
        )
        return accumulated(objective, parts)

    return {0: lambda: plain, rewarded_from: rewarded}


def _document_frequency(
    config: ConfigDict, captions: Sequence[Sequence[str]], report: Callable[[str], None]
) -> DocumentFrequency:
    """Load or count the document frequencies of the rewards."""
    path = config.scst.document_frequency
    if not path:
        return count_documents(captions, dataset="training split")
    frequency = DocumentFrequency.load(path)
    warning = check_document_frequency(frequency, captions, path)
    if warning:
        logging.getLogger(__name__).warning("%s", warning)
        report(f"*** {warning}")
    return frequency


def check_workdir(config: ConfigDict, workdir: pathlib.Path) -> list[str]:
    """Return how a config differs from the one that a run directory was begun with.

    Raises:
        ConfigError: it differs in fields that may not change while a run continues; the message
            says which.
    """
    path = workdir / CONFIG
    if not path.exists():
        return []
    allowed, refused = changed_fields(from_dict(read_settings(path), str(path)), config)
    if refused:
        raise ConfigError(
            f"{path}: this run was begun with another config ({'; '.join(refused)}); "
            "expected the same, or a new --workdir"
        )
    return allowed


def claim_workdir(run: Run) -> None:
    """Write `config.json` into a new run directory, or update it where a run continues.

    To be called once the run has a state: a fault found before must not leave a directory that
    refuses the mended config.
    """
    path = run.workdir / CONFIG
    if not processes.is_first():
        return
    changes = check_workdir(run.config, run.workdir)
    if changes:
        run.report(f"{path}: continuing with another config: {'; '.join(changes)}")
    if changes or not path.exists():
        _note_extractor(run.config, run.workdir)
        with write_atomically(path) as file:
            file.write(to_json(run.config))


def leave_workdir(run: Run) -> None:
    """Remove what a run that failed before it claimed its directory has written there."""
    if (run.workdir / CONFIG).exists() or not processes.is_first():
        return
    (run.workdir / INITIAL_WEIGHTS).unlink(missing_ok=True)
    if run.made_tokenizer:
        shutil.rmtree(run.workdir / TOKENIZER, ignore_errors=True)
    for folder in (run.workdir / "checkpoints", run.workdir):
        with contextlib.suppress(OSError):
            folder.rmdir()  # stays where it holds anything


def _check_length(workdir: pathlib.Path, total_steps: int) -> int:
    """Return the number of steps that a run is trained for; refuse to end it before them."""
    saved = [path.name for path in (workdir / "checkpoints").glob("*")]
    trained = max((int(name) for name in saved if name.isdecimal()), default=0)
    if trained > total_steps:
        raise ConfigError(
            f"config.train: {total_steps} steps in all, but {workdir} is trained for {trained}; "
            "expected as many or more"
        )
    return trained


def _check_start(config: ConfigDict, pruner: Pruner) -> None:
    """Check that the run to start from exists, and is named where one is needed."""
    start = config.train.init_from
    if start:
        if not (resolve_run(start) / CONFIG).exists():
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
    directory = workdir / TOKENIZER
    start = config.train.init_from
    if start and not directory.exists() and (resolve_run(start) / TOKENIZER).is_dir():
        make_tokenizer(config.tokenizer, resolve_run(start) / TOKENIZER).save(directory)
    if not directory.exists():
        captions = (text for record in dataset.splits["train"] for text in record.captions)
        return train_tokenizer(config.tokenizer, captions, directory)
    return make_tokenizer(config.tokenizer, directory)


def _note_extractor(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Keep what made the features, so that the trained run can caption photos."""
    if notes := noted_settings(config.data.features or config.data.dir):
        write_json(workdir / EXTRACTOR, notes)
