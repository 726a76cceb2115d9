"""An optax optimizer that prunes, for training loops that only know an optimizer."""

from typing import Any, NamedTuple, no_type_check

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning.masks import finalize
from sparsecap_jax.pruning.paths import by_path, to_path


@no_type_check
class WrappedState(NamedTuple):
    """State of a wrapped optimizer.

    Attributes:
        step: int32 `[]`, steps finished.
        prune: the pruner's state; `prune.masks` are the masks.
        inner: the state of the optimizer inside.
    """

    step: Int[Array, ""]
    prune: Any
    inner: optax.OptState


def wrap(
    pruner: Any, tx: optax.GradientTransformation, state: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Prune inside an optimizer: after every update the pruned weights are exactly 0.

    The loop differentiates its loss at the parameters as they are, zeros in place, so gradients
    reach pruned weights. The optimizer takes its step with them; at the events of the schedule
    masks are found on the result, and all pruned weights are set to 0.

    Args:
        pruner: any but those that train their masks or their pruned weights, or exchange weights.
        tx: the optimizer inside.
        state: a prepared state, for methods that need gradients of batches first; by default the
            weights given to `init` are prepared.

    Returns:
        A transformation whose state is a `WrappedState`. Its `update` needs `params`.

    Raises:
        ConfigError: the method needs the training step, or a prepared state.
    """
    if pruner.trains_masks or pruner.keeps_pruned or pruner.rewinds:
        raise ConfigError(
            f"pruner {pruner.name!r} does more than an optimizer can: train with sparse_step "
            "(docs/pruning.md)"
        )
    if state is None and pruner.batches_needed:
        raise ConfigError(
            f"pruner {pruner.name!r} needs gradients of batches first: wrap(tx, state) with a "
            "state from init and prepare"
        )

    def init_fn(params) -> WrappedState:
        prune = state
        if prune is None:
            prune = pruner.prepare(pruner.init(jax.random.key(0), params), params)
        return WrappedState(jnp.zeros((), jnp.int32), prune, tx.init(params))

    def update_fn(updates, old: WrappedState, params=None, **extra: Any):
        if params is None:
            raise ConfigError("a wrapped optimizer prunes parameters: give update(...) params")
        step = old.step + jnp.ones((), jnp.int32)
        inner = optax.with_extra_args_support(tx)
        kept = pruner.gradients(updates, old.prune.masks)
        deltas, moments = inner.update(kept, old.inner, params, **extra)
        moved = optax.apply_updates(params, deltas)
        prune = pruner.update(old.prune, moved, updates, step)
        masks = by_path(prune.masks)

        def land(keys, delta, param):
            mask = masks.get(to_path(keys))
            return delta if mask is None else jnp.where(mask != 0, delta, -param)

        deltas = jax.tree_util.tree_map_with_path(land, deltas, params)
        _, moments = pruner.settle(finalize(moved, prune.masks), moments, prune.masks)
        return deltas, WrappedState(step, prune, moments)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
