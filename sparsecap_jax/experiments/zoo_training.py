"""Training of the sweep of pruning methods: all seeds at once, a program for all sparsities.

Seeds are an axis of `jax.vmap`. The step's number is not, so that masks are ranked at events alone.
The sparsity is an argument of the compiled program, which chooses among pruners that differ in
nothing else.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from sparsecap_jax.experiments.zoo_models import Problem, calibration
from sparsecap_jax.pruning import (
    Pruner,
    TrainState,
    finalize,
    linen_inputs,
    make_pruner,
    overall_sparsity,
    prune_layers,
    sparse_step,
)
from sparsecap_jax.types import PyTree

DENSE = {"name": "none"}
# The step is one number for all seeds.
_AXES: dict[str, Any] = {"step": None, "params": 0, "prune": 0, "opt_state": 0, "rng": 0}
AXES = TrainState(**_AXES)
SPARSITY_WEIGHT = 3.0
"""Weight of the sparsity loss of supermasks, times 1 / (1 - sparsity): the lightest of 1 and 3 that
comes to every target."""
SOFT_WEIGHTS = {
    "digits": {0.5: 1.22, 0.8: 5.9, 0.9: 16.5, 0.95: 39.6, 0.98: 139.0},
    "characters": {0.5: 6.8, 0.8: 20.5, 0.9: 36.6, 0.95: 60.0, 0.98: 114.0},
}
"""Weights of the penalty of soft movement by sparsity, which it has no target for: found by the
sparsity alone that each leads to, at a threshold of 0.3."""
SOFT_THRESHOLD = 0.3
FINE_TUNING = ("movement", "soft_movement")
"""Methods that train from scratch as well, but were published for trained models."""


class OneOf(Pruner):
    """One of several pruners that differ in their sparsity alone, chosen by a traced index.

    Each method is a `lax.switch` over theirs, but those that the class inherits from `Pruner`,
    which read no sparsity.
    """

    def __init__(self, pruners: Sequence[Pruner], index: Int[Array, ""]):
        self.__dict__.update(pruners=tuple(pruners), index=index)

    def __getattribute__(self, name: str) -> Any:
        """Return a setting, or a method that switches."""
        if name.startswith("__"):
            return object.__getattribute__(self, name)
        pruners, index = self.__dict__["pruners"], self.__dict__["index"]
        value = getattr(pruners[0], name)
        inherited = getattr(type(pruners[0]), name, None) is getattr(Pruner, name, None)
        if not callable(value) or (inherited and name != "settle"):
            return value

        def switch(*args: Any) -> Any:
            branches = [functools.partial(getattr(pruner, name), *args) for pruner in pruners]
            return lax.switch(index, branches)

        return switch


def make_pruners(
    problem: Problem, settings: Mapping[str, Any], sparsities: Sequence[float], steps: int
) -> list[Pruner]:
    """Return a pruner for each sparsity, of all kernels unless `settings` include others."""
    if settings["name"] == DENSE["name"]:
        return [make_pruner(DENSE, steps)]
    fields = {"include": problem.kernels, **settings}

    def chosen(sparsity: float) -> dict[str, float]:
        if settings["name"] == "supermask":
            return {"sparsity_weight": SPARSITY_WEIGHT / (1 - sparsity)}
        if settings["name"] == "soft_movement":
            weight = SOFT_WEIGHTS[problem.name][sparsity]
            return {"sparsity_weight": weight, "threshold": SOFT_THRESHOLD}
        return {}

    return [make_pruner({**fields, **chosen(s), "sparsity": s}, steps) for s in sparsities]


def optimizer(problem: Problem, steps: int) -> optax.GradientTransformation:
    """Return the optimizer of the weights."""
    return optax.adam(optax.cosine_decay_schedule(problem.learning_rate, steps))


Outcome = tuple[PyTree, Float[Array, " S"], Float[Array, " S"]]


def make_program(problem: Problem, pruners: Sequence[Pruner], steps: int) -> Callable[..., Outcome]:
    """Return the compiled training of all seeds.

    It is called with the number of the pruner, the seeds `[S]`, the initial parameters and those to
    start from (leaves `[S, ...]`), and returns the pruned parameters, and score and sparsity of
    each seed. Batches depend on the seed and the step alone.
    """
    tx = optimizer(problem, steps)

    @jax.jit
    def program(index, seeds, first, start):
        pruner = OneOf(pruners, index)
        step = sparse_step(pruner, tx, problem.loss)

        def begin(seed, first, start):
            keys = jax.random.split(jax.random.key(seed), 1 + pruner.batches_needed)
            batches = [problem.batch(key) for key in keys[1:]]
            initial = first if pruner.rewinds else None
            return step.init(keys[0], start, batches=batches, initial=initial)

        def take(states, number):
            keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed + 1000), number))
            batches = jax.vmap(problem.batch)(keys(seeds))
            step_all = jax.vmap(step, in_axes=(AXES, 0), out_axes=(AXES, 0))
            return step_all(states, batches)[0], None

        def finish(state):
            binary = pruner.binarize(state.prune.masks)
            params = finalize(state.params, binary)
            return params, problem.test_score(params), overall_sparsity(binary)

        states = jax.vmap(begin, out_axes=AXES)(seeds, first, start)
        states, _ = lax.scan(take, states, jnp.arange(steps))
        return jax.vmap(finish, in_axes=(AXES,))(states)

    return program


@functools.lru_cache(maxsize=2)
def initial_params(problem: Problem, seeds: int) -> PyTree:
    """Return fresh parameters of all seeds, leaves `[S, ...]`."""
    return jax.jit(jax.vmap(lambda seed: problem.init(jax.random.key(seed))))(jnp.arange(seeds))


@functools.lru_cache(maxsize=4)
def dense_params(problem: Problem, seeds: int, steps: int) -> PyTree:
    """Return parameters of all seeds after so many steps of dense training."""
    program = make_program(problem, [make_pruner(DENSE, steps)], steps)
    first = initial_params(problem, seeds)
    return program(jnp.int32(0), jnp.arange(seeds), first, first)[0]


@functools.lru_cache(maxsize=1)
def _compiled(
    problem: Problem,
    settings: tuple[tuple[str, Any], ...],
    sparsities: tuple[float, ...],
    steps: int,
) -> tuple[Callable[..., Outcome], bool]:
    """Return the program of a method, kept for its next sparsity, and whether it continues."""
    first = make_pruners(problem, dict(settings), sparsities, steps)[0]
    trained = first.expects_trained or first.name in FINE_TUNING
    steps = steps - steps // 2 if trained else steps
    pruners = make_pruners(problem, dict(settings), sparsities, steps)
    return make_program(problem, pruners, steps), trained


def train_seeds(
    problem: Problem,
    settings: Mapping[str, Any],
    sparsities: Sequence[float],
    sparsity: float,
    *,
    steps: int,
    seeds: int,
) -> tuple[Float[Array, " S"], Float[Array, " S"]]:
    """Train seeds 0..seeds-1 with a method.

    Methods that prune a trained model take a dense one of half of the steps, and the other half.

    Args:
        problem: model and data.
        settings: fields of the pruner but `sparsity`.
        sparsities: those that the compiled program is for.
        sparsity: one of them.
        steps: training steps in all.
        seeds: number of seeds S.

    Returns:
        Score of the test split and sparsity of the masks, of each seed.
    """
    program, trained = _compiled(problem, tuple(settings.items()), tuple(sparsities), steps)
    first = initial_params(problem, seeds)
    start = dense_params(problem, seeds, steps // 2) if trained else first
    index = sparsities.index(sparsity) if settings["name"] != "none" else 0
    _, scores, reached = program(jnp.int32(index), jnp.arange(seeds), first, start)
    return scores, reached


@functools.lru_cache(maxsize=2)
def _layer_tools(problem: Problem) -> tuple[Callable, Callable, list]:
    score = jax.jit(problem.test_score)
    return linen_inputs(problem.apply), score, list(calibration(problem))


def prune_seeds(
    problem: Problem, method: str, sparsity: float, *, steps: int, seeds: int
) -> tuple[Float[Array, " S"], Float[Array, " S"]]:
    """Train seeds 0..seeds-1 densely, then prune them layer by layer, without more training.

    Args and results as in `train_seeds`; `method` is one of `prune_layers`.
    """
    inputs_of, score, batches = _layer_tools(problem)
    trained, scores, reached = dense_params(problem, seeds, steps), [], []
    for seed in range(seeds):
        params = jax.tree.map(lambda leaf, seed=seed: leaf[seed], trained)
        params, masks = prune_layers(
            params, inputs_of, batches, sparsity, method=method, layers=problem.kernels
        )
        scores.append(score(params))
        reached.append(overall_sparsity(masks))
    return jnp.stack(scores), jnp.stack(reached)
