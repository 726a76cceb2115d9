"""The state before the first step: initial or warm-started weights, and pruning before training."""

import itertools
import logging
import pathlib
import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.models import init_params
from sparsecap_jax.pruning.step import SparseStep, TrainState
from sparsecap_jax.runs.directory import load_variables
from sparsecap_jax.runs.finished import INITIAL_WEIGHTS
from sparsecap_jax.runs.published import resolve_run
from sparsecap_jax.runs.run import Run
from sparsecap_jax.runs.weights import load_weights, misfits
from sparsecap_jax.training.objectives import Objective
from sparsecap_jax.types import PyTree


def first_state(run: Run) -> tuple[TrainState, PyTree]:
    """Initialise, warm-start and prune as the config says, in this order.

    Methods that prune before training (one-shot, SNIP, lottery) do it here: masks are found on the
    warm-started weights, then lottery tickets go back to the initial weights of that run.

    Returns:
        The state; and the weights that training starts from, without zeros of the pruner's, to
        which a lottery ticket of this run would go back.

    Raises:
        CheckpointError: that run lacks a leaf, or has another one or one of another shape, which
            none of the regexes in `config.train.init_ignore` matches (as a whole, `a/b/c`).
    """
    train, pruner, objective = run.config.train, run.pruner, run.objective_at(0)
    source = train.init_from and resolve_run(train.init_from)
    if pruner.expects_trained and not source:
        logging.getLogger(__name__).warning(
            "pruner %r ranks weights that were not trained (config.train.init_from is empty)",
            pruner.name,
        )
    init_rng, rng = jax.random.split(jax.random.key(run.config.seed))
    params = init_params(run.model, init_rng)
    if source:
        stored = load_variables(source)["params"]
        params, taken = _merged(stored, params, train.init_ignore, source)
        run.report(f"warm start: {taken} tensors from {source}")
    gradient = partial(objective, resources=objective.resources)
    masks, initial = None, None
    if pruner.needs_masks:
        masks = jax.tree.map(jnp.float32, load_variables(source)["masks"])
    if pruner.rewinds:
        initial = load_weights(source / INITIAL_WEIGHTS)["params"]
    batches = _inputs(run, objective, pruner.batches_needed)
    step = SparseStep(pruner, run.tx, gradient, train.packed_optimizer)
    state = step.init(rng, params, batches=batches, masks=masks, initial=initial)
    return state, params if initial is None else initial


def _merged(
    stored: PyTree, fresh: PyTree, ignore: Sequence[str], source: pathlib.Path
) -> tuple[PyTree, int]:
    """Return `fresh` params with those stored in the run `source`, and the number of these."""
    faults = misfits(stored, fresh)
    refused = [
        fault
        for name, fault in faults.items()
        if not any(re.fullmatch(pattern, name) for pattern in ignore)
    ]
    if refused:
        raise CheckpointError(
            f"{source}: does not fit the model: {'; '.join(refused)} (config.train.init_ignore "
            "lists what may differ)"
        )
    stored, merged = flatten_dict(stored, sep="/"), flatten_dict(fresh, sep="/")
    fitting = merged.keys() - faults.keys()
    merged |= {name: jnp.asarray(stored[name], jnp.float32) for name in fitting}
    return unflatten_dict(merged, sep="/"), len(fitting)


def abstract_state(run: Run, masks: PyTree | None = None) -> TrainState:
    """Return shapes, dtypes and shardings of a state in training, for restoring one.

    Those of a packed optimizer depend on the values of the masks.
    """

    def make() -> TrainState:
        rng = jax.random.key(run.config.seed)
        params = init_params(run.model, rng)
        prune, params = run.pruner.rewind(run.pruner.init(rng, params), params)
        prune = prune if masks is None else prune.replace(masks=masks)
        packs = run.config.train.packed_optimizer
        return SparseStep(run.pruner, run.tx, packs=packs).start(rng, prune, params)

    state = jax.eval_shape(make)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        run.placement.shardings(state, state.params),
    )


def _inputs(run: Run, objective: Objective, count: int) -> Iterator[Any]:
    """Yield the objective's inputs of the first `count` batches, from an iterator of their own."""
    if count:
        iterator = run.train_iterator(whole=True)
        try:
            for batch in itertools.islice(iterator, count):
                stacked, _ = objective.inputs(jax.tree.map(lambda leaf: leaf[None], batch), 0)
                yield jax.tree.map(lambda leaf: leaf[0], stacked)
        finally:
            iterator.close()
