"""The state before the first step: initial or warm-started weights, and pruning before training."""

import itertools
import logging
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Key

from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.models import smallest_inputs
from sparsecap_jax.pruning.step import SparseStep, TrainState
from sparsecap_jax.runs.directory import INITIAL_WEIGHTS, load_variables
from sparsecap_jax.runs.run import Run
from sparsecap_jax.runs.weights import load_weights
from sparsecap_jax.training.objectives import Objective
from sparsecap_jax.types import PyTree


def init_params(model: nn.Module, rng: Key[Array, ""]) -> PyTree:
    """Initialise `model`'s params, float32."""
    return jax.jit(model.init)(rng, *smallest_inputs(model))["params"]


def first_state(run: Run, report: Callable[[str], None]) -> TrainState:
    """Initialise, warm-start and prune as the config says, in this order.

    Methods that prune before training (one-shot, SNIP, lottery) do it here: masks are found on the
    warm-started weights, then lottery tickets go back to the initial weights of that run.

    Raises:
        CheckpointError: that run does not fit the model.
    """
    source, pruner, objective = run.config.train.init_from, run.pruner, run.objective_at(0)
    if pruner.expects_trained and not source:
        logging.getLogger(__name__).warning(
            "pruner %r ranks weights that were not trained (config.train.init_from is empty)",
            pruner.name,
        )
    init_rng, rng = jax.random.split(jax.random.key(run.config.seed))
    params = init_params(run.model, init_rng)
    if source:
        params = warm_start(run, params, report)
    return _step(run, objective).init(
        rng,
        params,
        batches=_inputs(run, objective, pruner.batches_needed),
        masks=load_variables(source)["masks"] if pruner.needs_masks else None,
        initial=load_weights(pathlib.Path(source) / INITIAL_WEIGHTS)["params"]
        if pruner.rewinds
        else None,
    )


def warm_start(run: Run, fresh: PyTree, report: Callable[[str], None]) -> PyTree:
    """Return initial params from the run directory `config.train.init_from`; see `merge_params`."""
    source = pathlib.Path(run.config.train.init_from)
    ignore, stored = run.config.train.init_ignore, load_variables(source)["params"]
    params, taken = merge_params(stored, fresh, ignore, str(source))
    report(f"warm start: {taken} tensors from {source}")
    return params


def merge_params(
    source_params: PyTree, fresh: PyTree, ignore: Sequence[str], source: str
) -> tuple[PyTree, int]:
    """Put the params of the run `source` into the structure of `fresh`.

    Args:
        source_params: params of that run.
        fresh: initial params; ignored leaves that do not fit keep theirs.
        ignore: regexes over `a/b/c` paths (full match) of leaves that need not fit.
        source: name of that run in error messages.

    Returns:
        The params, and the number of leaves taken from that run.

    Raises:
        CheckpointError: a leaf that is not ignored is missing, extra or of another shape.
    """
    taken, initial = flatten_dict(source_params, sep="/"), flatten_dict(fresh, sep="/")
    shapes = {name: leaf.shape for name, leaf in initial.items()}
    fits = {name for name in shapes if name in taken and taken[name].shape == shapes[name]}
    faults = [
        _fault(name, shapes, taken)
        for name in sorted({*shapes, *taken} - fits)
        if not any(re.fullmatch(pattern, name) for pattern in ignore)
    ]
    if faults:
        raise CheckpointError(
            f"{source}: does not fit the model: {'; '.join(faults)} (config.train.init_ignore "
            "lists what may differ)"
        )
    merged = {n: jnp.asarray(taken[n], jnp.float32) if n in fits else initial[n] for n in shapes}
    return unflatten_dict(merged, sep="/"), len(fits)


def _fault(name: str, shapes: dict, taken: dict) -> str:
    if name not in taken:
        return f"{name} is missing"
    if name not in shapes:
        return f"{name} is extra"
    return f"{name} has shape {taken[name].shape}, expected {shapes[name]}"


def abstract_state(run: Run) -> TrainState:
    """Return shapes and dtypes of a state in training, for restoring one."""

    def make() -> TrainState:
        rng = jax.random.key(run.config.seed)
        params = init_params(run.model, rng)
        prune, params = run.pruner.rewind(run.pruner.init(rng, params), params)
        return SparseStep(run.pruner, run.tx).start(rng, prune, params)

    return jax.eval_shape(make)


def _step(run: Run, objective: Objective) -> SparseStep:
    return SparseStep(run.pruner, run.tx, partial(objective, resources=objective.resources))


def _inputs(run: Run, objective: Objective, count: int) -> Iterator[Any]:
    """Yield the objective's inputs of the first `count` batches.

    The training iterator stays where it is.
    """
    if count:
        iterator = run.train_iterator()
        try:
            for batch in itertools.islice(iterator, count):
                stacked, _ = objective.inputs(jax.tree.map(lambda leaf: leaf[None], batch), 0)
                yield jax.tree.map(lambda leaf: leaf[0], stacked)
        finally:
            iterator.close()
