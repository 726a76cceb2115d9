"""Teacher forcing that gives a recurrent model its own words now and then.

Bengio et al., "Scheduled Sampling for Sequence Prediction with Recurrent Neural Networks", NIPS
2015, as the reference does it (`models/att_model.py`, `ss_prob`).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from sparsecap_jax.types import ArrayLike

# (module, carry, tokens [B, K], *broadcast) -> (carry, log-probs [B, K, V])
Advance = Callable[..., tuple[Any, Array]]


def sampled_teacher_forcing(
    model: nn.Module,
    advance: Advance,
    carry: Any,
    tokens: Int[Array, "B K T"],
    probability: Float[ArrayLike, ""],
    *broadcast: Any,
) -> Float[Array, "B K T V"]:
    """Feed captions, each token but the first replaced with `probability` by one of the model's.

    The replacement is drawn from the model's distribution at the place before (rng stream
    "sampling"); no gradient flows through the draw. Inputs are sown as "inputs" `[B, K, T]`.

    Args:
        model: the module whose parameters `advance` uses.
        advance: one training step of it.
        carry: the state before the first token.
        tokens: captions from BOS on.
        probability: of a replacement, 0 to 1; may be traced.
        *broadcast: further arguments of `advance`, the same at every place.

    Returns:
        Log-probs of the token that follows each input.
    """

    def place(module: nn.Module, carry: tuple, given: Array, *broadcast: Any) -> tuple:
        state, drawn = carry
        replace = jax.random.bernoulli(module.make_rng("sampling"), probability, given.shape)
        inputs = jnp.where(replace, drawn, given)
        module.sow("intermediates", "inputs", inputs)
        state, log_probs = advance(module, state, inputs, *broadcast)
        drawn = jax.random.categorical(module.make_rng("sampling"), log_probs)
        return (state, drawn.astype(given.dtype)), log_probs

    scan = nn.scan(
        place,
        variable_axes={"intermediates": 2},
        variable_broadcast="params",
        split_rngs={"params": False, "dropout": True, "sampling": True},
        in_axes=(2, *(nn.broadcast for _ in broadcast)),
        out_axes=2,
    )
    # Whatever is drawn for the first place, it is the caption's own first token.
    return scan(model, (carry, tokens[:, :, 0]), tokens, *broadcast)[1]
