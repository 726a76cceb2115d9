"""Attention over regions with which a model produced the words of a caption."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float, Int

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.types import ArrayLike, PyTree, Regions


@partial(jax.jit, static_argnames=("model", "bos_id"))
def attention_weights(
    model: Any,
    params: PyTree,
    regions: Regions,
    tokens: Int[ArrayLike, "B K T"],
    *,
    bos_id: int = 2,
) -> Float[Array, "B K T R"]:
    """Return the attention over regions with which each token of `tokens` was produced.

    Captions are fed to the model once more, so that this serves the result of any search, and
    references as well. A model takes part by sowing `[B, K, R]` under the name "attention" into the
    collection "intermediates" in its `step`; where it does so more than once (layers, members of an
    ensemble), the mean is returned.

    Args:
        model: an unbound Flax module with `encode`, `init_carry` and `step`.
        params: its parameters, masks applied.
        regions: the images.
        tokens: captions without BOS, as in `Decoded`.
        bos_id: token that captions start from.

    Returns:
        float32 `[B, K, T, R]`, meaningless after the end of a caption.

    Raises:
        ConfigError: the model sows no attention.
    """
    variables = {"params": params}
    context = model.apply(variables, regions, train=False, method="encode")
    carry = model.apply(variables, context, tokens.shape[1], method="init_carry")

    def step(carry, token):
        (carry, _), sown = model.apply(
            variables, carry, token, context, method="step", mutable=["intermediates"]
        )
        flat = flatten_dict(sown.get("intermediates", {}))
        leaves = [leaf for path, sown in flat.items() if path[-1] == "attention" for leaf in sown]
        if not leaves:
            name = type(model).__name__
            raise ConfigError(
                f"attention: found none in a step of {name}, expected a sown 'attention'"
            )
        return carry, jnp.mean(jnp.stack(leaves), axis=0)

    bos = jnp.full((*tokens.shape[:2], 1), bos_id, jnp.int32)
    fed = jnp.concatenate([bos, tokens[:, :, :-1]], axis=2, dtype=jnp.int32)
    _, weights = jax.lax.scan(step, carry, jnp.moveaxis(fed, 2, 0))
    return jnp.moveaxis(weights, 0, 2)
