"""Optimizers that keep state of the kept weights alone, for masks that stay the same.

A pruned weight of a fixed mask gets no gradient and never moves, so its momenta are zeros that cost
memory and time. A packed optimizer sees, in place of each masked leaf, the vector `[K]` of its kept
values; its state has that size too, and remembers the places of the values.
"""

from typing import Any, NamedTuple, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning.masks import check_binary, check_fit
from sparsecap_jax.pruning.paths import by_path, like, map_paths, replaced, show
from sparsecap_jax.types import PyTree

_LARGEST = np.iinfo(np.int32).max
_EACH_ONCE = {"indices_are_sorted": True, "unique_indices": True}


@no_type_check  # JAX rebuilds pytrees with leaves that are no arrays
class PackedState(NamedTuple):
    """State of a packed optimizer; a pytree.

    Attributes:
        places: of each leaf that has pruned weights, in the masks' structure, int32 `[K]`: the
            places of the kept weights in row-major order. A leaf without kept weights has the one
            place behind its end.
        inner: the state of the optimizer inside.
    """

    places: PyTree
    inner: optax.OptState


def packed(
    tx: optax.GradientTransformation, masks: PyTree
) -> optax.GradientTransformationExtraArgs:
    """Run an optimizer on the kept weights alone.

    The updates are those of `tx` for gradients that are 0 where a mask is 0, but for pruned weights
    it gives none at all, so that weight decay leaves them as they are. Sums over leaves, as in
    clipping by a norm, run over the kept weights. The optimizer inside sees masked leaves as
    vectors: it must not depend on their shapes, as factored second moments do.

    `update` reads the places of the kept weights in the state, not the masks, whose shapes alone
    count then: compiled code does not depend on the masks.

    Args:
        tx: the optimizer; `optax.inject_hyperparams` and `optax.MultiSteps` may stand inside or
            outside.
        masks: {0, 1} masks with paths of the parameters, any pytree. Leaves without a mask, or
            without pruned weights, are passed as they are.

    Returns:
        A transformation whose state is a `PackedState`.

    Raises:
        ConfigError: in `init`, which needs the values of the masks: they are not binary, are
            traced, or do not fit the parameters. In `update`: they do not fit the updates.
    """
    inner = optax.with_extra_args_support(tx)

    def init(params: PyTree) -> PackedState:
        places = _places(masks, params)
        return PackedState(places, inner.init(take_kept(params, places)))

    def update(updates: PyTree, state: PackedState, params: PyTree = None, **extra: Any):
        check_fit(masks, updates)
        kept = take_kept(updates, state.places)
        deltas, state = _inner_update(inner, kept, state, params, **extra)
        return _map(_spread, state.places, updates, deltas), state

    return optax.GradientTransformationExtraArgs(init, update)


def packed_step(
    tx: optax.GradientTransformation, grads: PyTree, state: PackedState, params: PyTree
) -> tuple[PyTree, PackedState]:
    """Return the parameters and the state after an update of `packed(tx, masks)`.

    `grads` are those of kept weights, from `take_kept`. The result is that of
    `optax.apply_updates` after `update`, without a dense tree of updates in between: where `params`
    are donated, they are changed in place. Sums are the same bit for bit if updates have the dtype
    of the parameters.
    """
    deltas, state = _inner_update(optax.with_extra_args_support(tx), grads, state, params)
    return _map(_add, state.places, params, deltas), state


def _inner_update(inner, updates: PyTree, state: PackedState, params: PyTree, **extra: Any):
    """Return the packed updates of the optimizer inside, and the new state."""
    small = None if params is None else take_kept(params, state.places)
    deltas, moments = inner.update(updates, state.inner, small, **extra)
    return deltas, PackedState(state.places, moments)


def _places(masks: PyTree, params: PyTree) -> PyTree:
    """Return the places of the kept weights of each leaf that has pruned ones."""
    check_fit(masks, params)
    flat = by_path(masks)
    if any(isinstance(mask, jax.core.Tracer) for mask in flat.values()):
        raise ConfigError("packed: the masks are traced; init needs their values")
    flat = {path: np.asarray(mask) for path, mask in flat.items()}
    check_binary(replaced(masks, flat))
    places = {}
    for path, mask in flat.items():
        kept = np.flatnonzero(mask)
        if mask.size > _LARGEST:
            raise ConfigError(f"packed: mask {show(path)!r} has more than {_LARGEST} entries")
        if kept.size < mask.size:
            # Checkpoints hold no arrays of size 0.
            places[path] = jnp.asarray(kept if kept.size else [mask.size], jnp.int32)
    return like(masks, places)


def _map(function, places: PyTree, tree: PyTree, *rest: PyTree) -> PyTree:
    """Map `function(places, *leaves)` over a tree; its leaves without places give None."""
    flat = by_path(places)
    return map_paths(lambda path, *leaves: function(flat.get(path), *leaves), tree, *rest)


def take_kept(tree: PyTree, places: PyTree) -> PyTree:
    """Return a tree with the kept values `[K]` of each leaf that has places; see `PackedState`."""

    def take(where, leaf):
        if where is None:
            return leaf
        return jnp.reshape(leaf, -1).at[where].get(mode="fill", fill_value=0, **_EACH_ONCE)

    return _map(take, places, tree)


def _spread(where, leaf, delta):
    """Return updates of the shape of `leaf`, 0 for pruned weights."""
    if where is None:
        return delta
    flat = jnp.zeros(leaf.size, delta.dtype)
    return flat.at[where].set(delta, mode="drop", **_EACH_ONCE).reshape(leaf.shape)


def _add(where, leaf, delta):
    """Return `leaf` with the updates of its kept weights added."""
    if where is None:
        return (leaf + delta).astype(leaf.dtype)
    flat = jnp.reshape(leaf, -1).at[where]
    return flat.add(delta.astype(leaf.dtype), mode="drop", **_EACH_ONCE).reshape(leaf.shape)
