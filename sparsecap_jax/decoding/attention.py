"""Attention over regions with which a model produced the words of a caption."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float, Int

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.types import ArrayLike, PyTree, Regions


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
    return _weights(model, params, regions, jnp.asarray(tokens, jnp.int32), bos_id)


@partial(jax.jit, static_argnames=("model", "bos_id"))
def _weights(model, params, regions, tokens, bos_id):
    variables = {"params": params}
    context = model.apply(variables, regions, train=False, method="encode")
    carry = model.apply(variables, context, tokens.shape[1], method="init_carry")

    def step(carry, token):
        (carry, _), sown = model.apply(
            variables, carry, token, context, method="step", mutable=["intermediates"]
        )
        return carry, _sown_attention(sown.get("intermediates", {}), type(model).__name__)

    bos = jnp.full((*tokens.shape[:2], 1), bos_id, jnp.int32)
    fed = jnp.concatenate([bos, tokens[:, :, :-1]], axis=2)
    _, weights = jax.lax.scan(step, carry, jnp.moveaxis(fed, 2, 0))
    return jnp.moveaxis(weights, 0, 2)


def _sown_attention(intermediates: PyTree, name: str) -> Float[Array, "B K R"]:
    """Return the mean of the weights sown as "attention"."""
    flat = flatten_dict(intermediates)
    weights = [leaf for path, sown in flat.items() if path[-1] == "attention" for leaf in sown]
    if not weights:
        raise ConfigError(f"attention: found none in a step of {name}, expected a sown 'attention'")
    return jnp.mean(jnp.stack(weights), axis=0)
