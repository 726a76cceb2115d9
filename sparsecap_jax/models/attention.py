"""Layers of the transformers: multi-head attention, feed-forward, LayerNorm, positions.

They follow the reference (`models/transformer.py`), which follows "The Annotated Transformer".
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from sparsecap_jax.models.layers import Dropout, FanInInit, Linear, torch_uniform, xavier_uniform
from sparsecap_jax.models.packing import Rows
from sparsecap_jax.models.precision import matmul

# Score of a masked key: finite, so that a row without any valid key stays a number.
MASKED_SCORE = -1e9

# Keys and values of attention, `{"key", "value"}`.
KeysValues = dict[str, Array]


def tied_bias(key: Array) -> FanInInit:
    """Return an initializer U(-1/sqrt(fan_in), 1/sqrt(fan_in)) that always draws alike.

    The reference makes layers by deep-copying one layer and redraws only their matrices: the biases
    of all copies start equal. Layers that were copies of each other share one `key` here; layers
    of different width under one key draw different numbers.
    """

    def of(fan_in: int):
        init, layer_key = torch_uniform(fan_in), jax.random.fold_in(key, fan_in)
        return lambda unused_key, shape, dtype=jnp.float32: init(layer_key, shape, dtype)

    return of


class LayerNorm(nn.Module):
    """`scale * (x - mean) / (std + 1e-6) + bias` with the unbiased standard deviation.

    Unlike the common form, epsilon is added to the deviation and the variance divides by D - 1.
    """

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, inputs: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalise over the last axis."""
        width = inputs.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (width,))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        centred = inputs - jnp.mean(inputs, axis=-1, keepdims=True)
        variance = jnp.sum(centred * centred, axis=-1, keepdims=True) / (width - 1)
        # The root has no derivative at 0 (padded regions are constant): 0 is used, as in PyTorch.
        constant = variance == 0.0
        deviation = jnp.where(constant, 0.0, jnp.sqrt(jnp.where(constant, 1.0, variance)))
        return scale * (centred / (deviation + self.epsilon)) + bias


class FeedForward(nn.Module):
    """Two affine maps with ReLU and dropout between them.

    Attributes:
        ff_size: width between the maps.
        dropout: dropout rate after the ReLU.
        bias_init, dtype: see `Linear`.
    """

    ff_size: int
    dropout: float
    bias_init: FanInInit = torch_uniform
    dtype: str = "float32"

    @nn.compact
    def __call__(self, inputs: Float[Array, "... D"], train: bool) -> Float[Array, "... D"]:
        """Return the transformed `inputs`."""
        inits = self.dtype, xavier_uniform, self.bias_init
        hidden = Linear(self.ff_size, *inits, name="w_1")(inputs)
        hidden = Dropout(self.dropout).relu(hidden, deterministic=not train)
        return Linear(inputs.shape[-1], *inits, name="w_2")(hidden)


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention with H heads, its keys and values computed apart.

    Vaswani et al., "Attention Is All You Need", NeurIPS 2017; sharing after Tan et al., "ACORT: A
    Compact Object Relation Transformer for Parameter Efficient Image Captioning", 2022.

    Attributes:
        num_heads: number of heads H, a divisor of `d_model`.
        d_model: width D of inputs and outputs.
        dropout: dropout rate on the attention weights.
        share: "" for separate projections, "kv" when keys serve as values, "qk" when queries and
            keys use one projection.
        bias_init, dtype: see `Linear`.
    """

    num_heads: int
    d_model: int
    dropout: float
    share: str = ""
    bias_init: FanInInit = torch_uniform
    dtype: str = "float32"

    def setup(self) -> None:
        def dense():
            return Linear(self.d_model, self.dtype, xavier_uniform, self.bias_init)

        self.query = dense()
        if self.share != "qk":
            self.key = dense()
        if self.share != "kv":
            self.value = dense()
        self.out = dense()
        self.drop = nn.Dropout(self.dropout)

    def keys_values(self, memory: Float[Array, "N D"], rows: Rows) -> KeysValues:
        """Project `memory`, which lies as `rows` says, to `{"key", "value"}`; "kv" has no "value".

        Each is `[B * K, H, R, D/H]`.
        """
        key = self.query if self.share == "qk" else self.key
        projected = {"key": self._split(rows.spread(key(memory)))}
        if self.share != "kv":
            projected["value"] = self._split(rows.spread(self.value(memory)))
        return projected

    def __call__(
        self,
        queries: Float[Array, "N D"],
        memory: KeysValues,
        mask: Bool[Array, " G #H #Q R"],
        rows: Rows,
        bias: Float[Array, "G H Q R"] | None = None,
        *,
        train: bool = False,
    ) -> tuple[Float[Array, "N D"], Float[Array, "G H Q R"]]:
        """Attend from `queries` to the result of `keys_values`.

        Args:
            queries: places that look, Q for each of the G groups of `memory`.
            memory: keys and values `[G, H, R, D/H]`; groups are images or rows.
            mask: True where a query may look.
            rows: layout of `queries`.
            bias: added to the masked scores.
            train: whether dropout is on (rng stream "dropout").

        Returns:
            The result in the layout of `queries`, and the attention weights before dropout.
        """
        keys = memory["key"]
        query = self._split(rows.spread(self.query(queries), keys.shape[0]))
        scores = matmul(query, keys.swapaxes(-1, -2), self.dtype)
        scores = scores / jnp.float32(math.sqrt(keys.shape[-1]))
        scores = jnp.where(mask, scores, jnp.float32(MASKED_SCORE))
        weights = jax.nn.softmax(scores if bias is None else scores + bias, axis=-1)
        dropped = self.drop(weights, deterministic=not train)
        mixed = matmul(dropped, memory.get("value", keys), self.dtype).swapaxes(1, 2)
        return self.out(rows.gather(mixed.reshape(*mixed.shape[:2], self.d_model))), weights

    def _split(self, projected: Float[Array, "N Q D"]) -> Float[Array, "N H Q E"]:
        """Give every head its share of the width, heads before places."""
        return projected.reshape(*projected.shape[:2], self.num_heads, -1).swapaxes(1, 2)


def write_cache(cache: KeysValues, new: KeysValues, position: Int[Array, "B K"]) -> KeysValues:
    """Put keys and values of one word per row at `position`; beyond the end they are dropped.

    Leaves of `cache` are `[B, K, H, T, D/H]`, those of `new` `[B * K, H, 1, D/H]`.
    """
    images, rows = (jnp.arange(size, dtype=jnp.int32) for size in position.shape)
    kept: dict[str, Any] = {"mode": "drop", "unique_indices": True, "indices_are_sorted": True}
    written = {}
    for name, old in cache.items():
        words = new[name].reshape(*old.shape[:3], old.shape[-1])
        written[name] = old.at[images[:, None], rows, :, position].set(words, **kept)
    return written
