"""Reading a run directory: its config, tokenizer, model and best weights; nothing else is needed.

`config.json`, `tokenizer/`, and `weights.npz` (a finished model) or `checkpoints/`.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from sparsecap_jax.errors import CheckpointError, ConfigError, SparsecapError
from sparsecap_jax.files import read_settings, write_atomically, write_json
from sparsecap_jax.models import abstract_params, make_model
from sparsecap_jax.pruning import make_pruner
from sparsecap_jax.pruning.masks import finalize
from sparsecap_jax.pruning.paths import by_path, nest, select
from sparsecap_jax.pruning.summary import by_module, summarize
from sparsecap_jax.runs.checkpoints import Checkpoints
from sparsecap_jax.runs.config import from_dict, model_config, to_json
from sparsecap_jax.runs.finished import (
    CONFIG,
    EXTRACTOR,
    PARAMS,
    SEARCH,
    TOKENIZER,
    WEIGHTS,
    read_notes,
)
from sparsecap_jax.runs.weights import check_fit, load_weights, save_weights
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
    """Load a run directory.

    Args:
        directory: the run directory.
        step: its weights, see `load_variables`.

    Raises:
        CheckpointError: there is no run or no such step, its config is faulty, or its weights are
            corrupt or do not fit its config.
        ConfigError, DataError: its tokenizer is broken.
    """
    directory = pathlib.Path(directory)
    config = load_config(directory)
    tokenizer = make_tokenizer(config.tokenizer, directory / TOKENIZER)
    model = make_model(model_config(config, tokenizer.vocab_size))
    variables = load_variables(directory, config, abstract_params(model), step)
    notes = read_notes(directory)
    return LoadedRun(config, tokenizer, model, variables["params"], variables["masks"], *notes)


def load_config(directory: pathlib.Path) -> ConfigDict:
    """Load the config of a run directory; a CheckpointError if there is none or it is faulty."""
    path = directory / CONFIG
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

    `step` "best" is `weights.npz` where the run is finished, else its best checkpoint, else its
    last one; "last", or a number, is the checkpoint of that step.

    Raises:
        ConfigError: `step` is none of these.
        CheckpointError: there are none, they are corrupt, or not of the paths and shapes `expected`
            of params.
    """
    directory = pathlib.Path(directory)
    if step == "best" and (directory / WEIGHTS).exists():
        return load_weights(directory / WEIGHTS, expected)
    config = config or load_config(directory)
    variables = load_raw_variables(directory, step)
    if expected is not None:
        check_fit(directory, variables["params"], expected)
    pruner = make_pruner(config.pruner, total_steps=1, steps_per_epoch=1)
    masks = jax.device_get(pruner.binarize(variables["masks"]))
    return {"params": jax.device_get(finalize(variables["params"], masks)), "masks": masks}


def load_raw_variables(directory: str | pathlib.Path, step: int | str = "best") -> dict[str, Any]:
    """Load `{"params": ..., "masks": ...}` as they were trained; errors as `load_variables`.

    From a checkpoint (by default the best, else the last): weights not pruned, masks logits where
    trained.
    """
    if step not in ("best", "last") and not isinstance(step, int):
        raise ConfigError(f"step is {step!r}; expected a number, 'last' or 'best'")
    with contextlib.closing(Checkpoints(directory, read_only=True)) as checkpoints:
        if step == "best":
            step = checkpoints.best_step() or "last"
        if step == "last":
            step = checkpoints.last_step()
        elif step not in checkpoints.steps():
            kept = ", ".join(map(str, checkpoints.steps()))
            raise CheckpointError(f"{directory}: no checkpoint of step {step}; there are {kept}")
        return checkpoints.restore_variables(step)


def save_run(directory: str | pathlib.Path, run: LoadedRun, *, compact: bool = False) -> int:
    """Write a finished run directory; `compact` and the result are those of `save_weights`."""
    directory = pathlib.Path(directory)
    run.tokenizer.save(directory / TOKENIZER)
    size = save_weights(directory / WEIGHTS, run.params, run.masks, compact=compact)
    write_json(directory / PARAMS, by_module(summarize(run.params, run.masks)))
    for name, notes in ((EXTRACTOR, run.extractor), (SEARCH, run.search)):
        if notes:
            write_json(directory / name, dict(notes))
    with write_atomically(directory / CONFIG) as file:
        file.write(to_json(run.config))
    return size


def prunable_masks(params: PyTree, masks: PyTree, pruner: ConfigDict) -> PyTree:
    """Return binary masks of the weights that `config.pruner` would prune, and of no others.

    Weights without a mask, as in a dense or an imported model, get one that keeps all but zeros.
    """
    leaves, known = by_path(params), by_path(masks)
    paths = select(params, tuple(pruner.include), tuple(pruner.exclude))
    return nest({path: known.get(path, np.float32(leaves[path] != 0)) for path in paths})


def weight_counts(params: PyTree) -> dict[str, float | int]:
    """Return `sparsity`, the share of zeros, and `nonzeros`, both over the prunable weights.

    These are matrices of linear, embedding, recurrent and attention layers: no biases, no norms.
    """
    leaves = by_path(params)
    weights = [np.asarray(leaves[path]) for path in select(params)]
    nonzeros = sum(int(np.count_nonzero(weight)) for weight in weights)
    return {"sparsity": 1.0 - nonzeros / sum(w.size for w in weights), "nonzeros": nonzeros}
