"""State of pruners between steps, alone and along with that of an optimizer."""

import dataclasses
from typing import Any, NamedTuple, no_type_check

import optax
from flax import struct
from jaxtyping import Array, Int

from sparsecap_jax.types import PyTree


# JAX rebuilds pytrees with leaves that are no arrays, so the fields are not checked at run time.
@no_type_check
@struct.dataclass
class PruneState:
    """State of a pruner between steps; a pytree.

    Attributes:
        masks: the prunable parameters' structure and paths (`paths.like`), float32: logits where
            masks are trained, {0, 1} otherwise.
        extras: dict of further state (initial weights, the seed of random scores).
    """

    masks: PyTree
    extras: PyTree

    def replace(self, **changes: Any) -> "PruneState":
        """Return a copy with other values of some fields."""
        return dataclasses.replace(self, **changes)


@no_type_check
class WrappedState(NamedTuple):
    """State of a wrapped optimizer (`Pruner.wrap`).

    Attributes:
        step: int32 `[]`, steps finished.
        prune: the pruner's state; `prune.masks` are the masks.
        inner: the state of the optimizer inside.
    """

    step: Int[Array, ""]
    prune: PruneState
    inner: optax.OptState
