"""The state before the first step: initial or warm-started weights, and pruning before training."""

import itertools
import logging
import pathlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
from flax import linen as nn
from jaxtyping import Array, Key

from sparsecap_jax.models import smallest_inputs
from sparsecap_jax.pruning.step import SparseStep, TrainState
from sparsecap_jax.runs.directory import INITIAL_WEIGHTS, load_variables
from sparsecap_jax.runs.run import Run
from sparsecap_jax.runs.warm_start import warm_start
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
