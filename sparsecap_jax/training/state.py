"""The state of training: everything a step reads and writes, as one pytree."""

from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Int, Key

from sparsecap_jax.models import smallest_inputs
from sparsecap_jax.types import PyTree


@no_type_check  # JAX rebuilds pytrees with leaves that are not arrays
@struct.dataclass
class TrainState:
    """What one training step turns into the next.

    Attributes:
        step: int32 `[]`, number of steps taken.
        params: the model's weights, dense: masks are applied to them in the step.
        prune: `PruneState` of the pruner: masks and whatever else it keeps.
        opt_state: state of the optimizer over `trainable(...)`.
        rng: the run's key; every step folds its own number in.
    """

    step: Int[Array, ""]
    params: PyTree
    prune: Any
    opt_state: optax.OptState
    rng: Key[Array, ""]


def trainable(params: PyTree, masks: PyTree, trains_masks: bool) -> dict[str, PyTree]:
    """The tree that the optimizer owns: params, and masks where the pruner trains them."""
    return {"params": params, "masks": masks} if trains_masks else {"params": params}


def init_params(model: nn.Module, rng: Key[Array, ""]) -> PyTree:
    """Initialise `model`'s params, float32."""
    return jax.jit(model.init)(rng, *smallest_inputs(model))["params"]


def create_state(
    params: PyTree,
    prune: Any,
    pruner: Any,
    tx: optax.GradientTransformation,
    rng: Key[Array, ""],
) -> TrainState:
    """Start training from weights and pruner state: fresh optimizer state, step 0."""
    opt_state = tx.init(trainable(params, prune.masks, pruner.trains_masks))
    return TrainState(jnp.zeros((), jnp.int32), params, prune, opt_state, rng)
