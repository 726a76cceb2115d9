"""The state before the first step: initial or warm-started weights, and pruning before training."""

import itertools
import logging
import pathlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning.frozen import MaskFreeze
from sparsecap_jax.pruning.lottery import Rewinds
from sparsecap_jax.runs.directory import INITIAL_WEIGHTS, load_variables
from sparsecap_jax.runs.run import Run
from sparsecap_jax.runs.warm_start import warm_start
from sparsecap_jax.runs.weights import load_weights
from sparsecap_jax.training.losses import caption_loss
from sparsecap_jax.training.state import TrainState, create_state, init_params
from sparsecap_jax.types import Batch, PyTree


def first_state(run: Run, report: Callable[[str], None]) -> TrainState:
    """Initialise, warm-start and prune as the config says, in this order.

    Methods that prune before training (one-shot, SNIP, lottery) do it here: masks are found on the
    warm-started weights, then lottery tickets go back to the initial weights of that run.

    Raises:
        ConfigError: the pruner needs a trained run, and `config.train.init_from` names none.
        CheckpointError: that run does not fit the model.
    """
    init_rng, rng = jax.random.split(jax.random.key(run.config.seed))
    mask_rng, grad_rng = jax.random.split(jax.random.fold_in(rng, 1))
    source, pruner = run.config.train.init_from, run.pruner
    if isinstance(pruner, Rewinds | MaskFreeze) and not source:
        raise ConfigError(
            f"pruner {run.config.pruner.name!r} starts from another run; expected its directory in "
            "config.train.init_from"
        )
    if run.scst_start == 0 and not source:
        raise ConfigError(
            "config.scst.start_epoch is 0, and captions of an untrained model earn nothing; "
            "expected a trained run in config.train.init_from, or a later epoch"
        )
    if pruner.expects_trained and not source:
        logging.getLogger(__name__).warning(
            "pruner %r ranks weights that were not trained (config.train.init_from is empty)",
            run.config.pruner.name,
        )
    fresh = init_params(run.model, init_rng)
    params = warm_start(run, fresh, report) if source else fresh
    first = params
    if isinstance(pruner, Rewinds):
        first = load_weights(pathlib.Path(source) / INITIAL_WEIGHTS)["params"]
    prune = pruner.init(mask_rng, jax.tree.map(jnp.asarray, first))
    if isinstance(pruner, MaskFreeze):
        prune = pruner.load_masks(prune, load_variables(source)["masks"])
    grad_fn = _grad_fn(run, grad_rng)
    prune = pruner.prepare(prune, params, grad_fn, _batches(run, pruner.batches_needed))
    prune, params = pruner.rewind(prune, params)
    return create_state(params, prune, run.pruner, run.tx, rng)


def abstract_state(run: Run) -> TrainState:
    """Shapes and dtypes of a state in training, for restoring one."""

    def make() -> TrainState:
        rng = jax.random.key(run.config.seed)
        params = init_params(run.model, rng)
        prune, params = run.pruner.rewind(run.pruner.init(rng, params), params)
        return create_state(params, prune, run.pruner, run.tx, rng)

    return jax.eval_shape(make)


def _batches(run: Run, count: int) -> Iterator[Batch]:
    """The first `count` training batches, without touching the training iterator."""
    if count:
        iterator = run.train_iterator()
        try:
            yield from itertools.islice(iterator, count)
        finally:
            iterator.close()


def _grad_fn(run: Run, rng: jax.Array) -> Callable[[PyTree, Batch], PyTree]:
    """Gradients of the training loss by the weights, dropout on as in the reference."""

    def loss(params: PyTree, batch: Batch) -> jax.Array:
        log_probs = run.model.apply(
            {"params": params}, batch.regions, batch.tokens, train=True, rngs={"dropout": rng}
        )
        return caption_loss(log_probs, batch, run.config.train.label_smoothing)

    return jax.jit(jax.grad(loss))
