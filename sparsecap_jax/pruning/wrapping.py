"""Pruning inside of an optimizer, for loops that know nothing else: `Pruner.wrap`."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning.masks import finalize, map_masked
from sparsecap_jax.pruning.states import PruneState, WrappedState
from sparsecap_jax.types import PyTree


def wrap(
    pruner: Any, tx: optax.GradientTransformation, state: PruneState | None = None
) -> optax.GradientTransformationExtraArgs:
    """Return the transformation of `Pruner.wrap`, which has the particulars, for a `Pruner`."""
    if pruner.trains_masks or pruner.keeps_pruned or pruner.rewinds:
        raise ConfigError(
            f"pruner {pruner.name!r} does more than an optimizer can: train with sparse_step "
            "(docs/pruning/loops.md)"
        )
    if state is None and pruner.batches_needed:
        raise ConfigError(
            f"pruner {pruner.name!r} needs gradients of batches first: wrap(tx, state) with a "
            "state from init and prepare"
        )
    inner = optax.with_extra_args_support(tx)

    def init(params: PyTree) -> WrappedState:
        prune = state or pruner.prepare(pruner.init(jax.random.key(0), params), params)
        moments = inner.init(params)
        pruner.evidence(params, moments, params)  # fails here where there is none
        return WrappedState(jnp.zeros((), jnp.int32), prune, moments)

    def update(updates: PyTree, old: WrappedState, params: PyTree = None, **extra: Any):
        if params is None:
            raise ConfigError("a wrapped optimizer prunes parameters: give update(...) params")
        step = old.step + jnp.ones((), jnp.int32)
        kept = pruner.gradients(updates, old.prune.masks)
        deltas, moments = inner.update(kept, old.inner, params, **extra)
        moved = optax.apply_updates(params, deltas)
        prune = pruner.update(old.prune, moved, pruner.evidence(updates, moments, params), step)
        landed = finalize(moved, prune.masks)
        _, moments = pruner.settle(landed, moments, prune.masks)

        def land(mask, delta, weight):
            return jnp.where(mask != 0, delta, -weight)

        deltas = map_masked(land, prune.masks, deltas, params)
        return deltas, WrappedState(step, prune, moments)

    return optax.GradientTransformationExtraArgs(init, update)
