"""Reading a run: its config, tokenizer, model and best weights; nothing else is needed.

A run is a directory with `config.json`, `tokenizer/`, and `model.scap` (a finished model) or
`checkpoints/`; or `model.scap` alone, which holds them all. Finished weights may also be
`weights.npz`, as runs had them at first, or `weights.safetensors`.
"""

import contextlib
import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from sparsecap_jax.data.extractor_notes import EXTRACTOR
from sparsecap_jax.errors import CheckpointError, ConfigError, DataError, SparsecapError
from sparsecap_jax.files import absent, read_settings, write_atomically, write_json
from sparsecap_jax.model_files import FORMS, ModelFile, write_model
from sparsecap_jax.models import abstract_params, make_model
from sparsecap_jax.pruning import make_pruner
from sparsecap_jax.pruning.masks import finalize
from sparsecap_jax.pruning.paths import Path, by_path, nest, select
from sparsecap_jax.pruning.summary import by_module, summarize
from sparsecap_jax.runs.checkpoints import Checkpoints
from sparsecap_jax.runs.config import from_dict, model_config, to_json
from sparsecap_jax.runs.finished import (
    CONFIG,
    FINISHED,
    MODEL,
    NPZ,
    PARAMS,
    SEARCH,
    SUMMARY,
    TOKENIZER,
    file_settings,
    file_tokenizer,
    finished_weights,
    read_notes,
)
from sparsecap_jax.runs.weights import (
    SAFETENSORS,
    load_weights,
    read_model,
    save_safetensors,
    save_weights,
)
from sparsecap_jax.tokenizers import Tokenizer, make_tokenizer
from sparsecap_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A trained model, ready to caption.

    Attributes:
        config: the config it was trained with.
        tokenizer: its tokenizer.
        model: the unbound module.
        params: its weights, pruned.
        masks: binary masks over the pruned leaves; `{}` for a dense model.
        extractor: settings of the extractor that made its features, see `photos.extractors`; `{}`
            where nothing says so.
        search: options of the search that suits it best, where it comes with some.
    """

    config: ConfigDict
    tokenizer: Tokenizer
    model: nn.Module
    params: PyTree
    masks: PyTree
    extractor: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    search: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def load_run(directory: str | pathlib.Path, step: int | str = "best") -> LoadedRun:
    """Load a run directory, or a model file.

    Args:
        directory: the run directory, or the file.
        step: its weights, see `load_variables`.

    Raises:
        CheckpointError: there is no run or no such step, its config is faulty, or its weights are
            corrupt or do not fit its config.
        ConfigError, DataError: its tokenizer is broken, or its `search.json` is.
    """
    directory = pathlib.Path(directory)
    if directory.is_file():
        return _load_file(directory, step)
    config = load_config(directory)
    tokenizer = make_tokenizer(config.tokenizer, directory / TOKENIZER)
    model = make_model(model_config(config, tokenizer.vocab_size))
    variables = load_variables(directory, config, abstract_params(model), step)
    notes = read_notes(directory)
    return LoadedRun(config, tokenizer, model, variables["params"], variables["masks"], *notes)


def _load_file(path: pathlib.Path, step: int | str) -> LoadedRun:
    """Load a model file, as `load_run`."""
    if step != "best":
        raise CheckpointError(f"{path}: step is {step!r}; a model file holds the best alone")
    with ModelFile(path) as file:
        settings, *notes = file_settings(path, file)
        try:
            config = from_dict(settings, f"{path}: config")
        except SparsecapError as error:
            raise CheckpointError(str(error)) from error
        tokenizer = file_tokenizer(path, file, config.tokenizer)
        model = make_model(model_config(config, tokenizer.vocab_size))
        variables = read_model(path, file, abstract_params(model))
    return LoadedRun(config, tokenizer, model, variables["params"], variables["masks"], *notes)


def load_config(directory: pathlib.Path) -> ConfigDict:
    """Load the config of a run directory; a CheckpointError if there is none or it is faulty."""
    path = directory / CONFIG
    if not directory.exists():
        raise CheckpointError(absent(directory, "a run"))
    if not path.exists():
        raise CheckpointError(f"{directory}: no run directory: {CONFIG} is missing")
    try:
        return from_dict(read_settings(path), str(path))
    except SparsecapError as error:
        raise CheckpointError(str(error)) from error


def load_variables(
    directory: str | pathlib.Path,
    config: ConfigDict | None = None,
    expected: PyTree | None = None,
    step: int | str = "best",
) -> dict[str, Any]:
    """Load `{"params": pruned weights, "masks": binary masks}` of a run directory.

    `step` "best" is `model.scap` where the run is finished, else its best checkpoint, else its last
    one; "last", or a number, is the checkpoint of that step.

    Raises:
        ConfigError: `step` is none of these.
        CheckpointError: there are none, they are corrupt, or not of the paths and shapes `expected`
            of params.
    """
    directory = pathlib.Path(directory)
    config = config or load_config(directory)
    if step == "best" and (finished := finished_weights(directory)):
        variables = load_weights(finished, expected)
        # Biases that are mostly 0 are stored as sparse leaves too.
        try:
            prunable = _prunable(variables["params"], config.pruner)
        except ConfigError as error:
            raise CheckpointError(f"{directory / CONFIG}: {error}") from error
        masks = {
            path: leaf for path, leaf in by_path(variables["masks"]).items() if path in prunable
        }
        return {**variables, "masks": nest(masks)}
    variables = load_raw_variables(directory, step, expected)
    pruner = make_pruner(config.pruner, total_steps=1, steps_per_epoch=1)
    masks = jax.device_get(pruner.binarize(variables["masks"]))
    return {"params": jax.device_get(finalize(variables["params"], masks)), "masks": masks}


def load_raw_variables(
    directory: str | pathlib.Path, step: int | str = "best", expected: PyTree | None = None
) -> dict[str, Any]:
    """Load `{"params": ..., "masks": ...}` as they were trained; errors as `load_variables`.

    From a checkpoint (by default the best, else the last): weights not pruned, masks logits where
    trained. A run that trains meanwhile may drop that checkpoint: then the next best one is read.
    """
    if step not in ("best", "last") and not isinstance(step, int):
        raise ConfigError(f"step is {step!r}; expected a number, 'last' or 'best'")
    while True:
        with contextlib.closing(Checkpoints(directory, read_only=True)) as checkpoints:
            chosen: Any = step
            if chosen == "best":
                chosen = checkpoints.best_step() or "last"
            if chosen == "last":
                chosen = checkpoints.last_step()
            elif chosen not in checkpoints.steps():
                kept = ", ".join(map(str, checkpoints.steps()))
                raise CheckpointError(
                    f"{directory}: no checkpoint of step {chosen}; there are {kept}"
                )
            try:
                return checkpoints.restore_variables(chosen, expected)
            except CheckpointError:
                if (checkpoints.directory / str(chosen)).exists():
                    raise


def steps_done(directory: str | pathlib.Path) -> tuple[int, int] | None:
    """Return the last step of a run, and that of its weights; None where nothing says so.

    A finished run says so in `summary.json`, one that was stopped by its checkpoints.

    Raises:
        DataError: `summary.json` is broken.
        CheckpointError: the checkpoints are.
    """
    directory = pathlib.Path(directory)
    steps: tuple[Any, Any] = (None, None)
    if (directory / SUMMARY).is_file():
        summary = read_settings(directory / SUMMARY, "figures")
        steps = summary.get("step"), summary.get("best_step")
    elif (directory / "checkpoints").is_dir():
        with contextlib.closing(Checkpoints(directory, read_only=True)) as checkpoints:
            steps = checkpoints.last_step(), checkpoints.best_step()
    last, best = steps[0], steps[0] if steps[1] is None else steps[1]
    if last is None:
        return None
    for step in (last, best):
        if type(step) is not int or not 0 <= step < 2**63:
            raise DataError(f"{directory / SUMMARY}: step is {step!r:.80}; expected a number")
    return last, best


def save_run(directory: str | pathlib.Path, run: LoadedRun, *, form: str = "float32") -> int:
    """Write a finished run directory, and return the size of its weights' file in bytes.

    Args:
        directory: the folder.
        run: what to write.
        form: of the weights, see `save_finished`.
    """
    directory = pathlib.Path(directory)
    run.tokenizer.save(directory / TOKENIZER)
    write_json(directory / PARAMS, by_module(summarize(run.params, run.masks)))
    for name, notes in ((EXTRACTOR, run.extractor), (SEARCH, run.search)):
        if notes:
            write_json(directory / name, dict(notes))
    with write_atomically(directory / CONFIG) as file:
        file.write(to_json(run.config))
    return save_finished(directory, run, form)


def save_finished(directory: pathlib.Path, run: LoadedRun, form: str = "float32") -> int:
    """Write the weights of a run directory, and return the file's size in bytes.

    Files of other forms are removed, since only one is read.

    Args:
        directory: the folder.
        run: the run.
        form: "float32", "float16" or "int8": `model.scap` with values of that form, see
            `save_model`; "npz" or "npz_compact": `weights.npz`, see `weights.save_weights`; or
            "safetensors".
    """
    if form == "safetensors":
        path = directory / f"weights{SAFETENSORS}"
        size = save_safetensors(path, run.params, run.masks)
    elif form in ("npz", "npz_compact"):
        path, compact = directory / NPZ, form == "npz_compact"
        size = save_weights(path, run.params, run.masks, compact=compact)
    elif form in FORMS:
        path = directory / MODEL
        size = save_model(path, run, form)
    else:
        known = ", ".join([*FORMS, "npz", "npz_compact", "safetensors"])
        raise ConfigError(f"form of the weights is {form!r}; expected one of {known}")
    for name in FINISHED:
        if name != path.name:
            (directory / name).unlink(missing_ok=True)
    return size


def save_model(path: str | pathlib.Path, run: LoadedRun, form: str = "float32") -> int:
    """Write a run as one model file, and return its size in bytes.

    Args:
        path: the file.
        run: the run.
        form: of the values: "float32" (lossless), "float16", or "int8"; see `model_files.values`.
    """
    with tempfile.TemporaryDirectory() as folder:
        run.tokenizer.save(pathlib.Path(folder, TOKENIZER))
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(pathlib.Path(folder).rglob("*"))
            if path.is_file() and path.suffix != ".vocab"  # a list for people
        }
    notes = {"config": json.loads(to_json(run.config))}
    notes |= {"extractor": dict(run.extractor), "search": dict(run.search)}
    leaves = [flatten_dict(jax.device_get(tree), sep="/") for tree in (run.params, run.masks)]
    return write_model(path, *leaves, form=form, notes=notes, files=files)["file"]


def prunable_masks(params: PyTree, masks: PyTree, pruner: ConfigDict) -> PyTree:
    """Return binary masks of the weights that `config.pruner` would prune, and of no others.

    Weights without a mask, as in a dense or an imported model, get one that keeps all but zeros.
    """
    leaves, known = by_path(params), by_path(masks)
    paths = _prunable(params, pruner)
    return nest({path: known.get(path, np.float32(leaves[path] != 0)) for path in paths})


def _prunable(params: PyTree, pruner: ConfigDict) -> list[Path]:
    return select(params, tuple(pruner.include), tuple(pruner.exclude))
