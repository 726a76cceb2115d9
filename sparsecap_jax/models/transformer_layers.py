"""Encoder and decoder layers of the transformers, in the form of the reference.

Vaswani et al., "Attention Is All You Need", NeurIPS 2017; reference `models/transformer.py`: norms
come before the sublayers.
"""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from sparsecap_jax.models import attention as att
from sparsecap_jax.models.attention import KeysValues
from sparsecap_jax.models.layers import FanInInit
from sparsecap_jax.models.packing import Rows


@dataclasses.dataclass(frozen=True)
class LayerConfig:
    """Sizes that the layers of one stack share; see `Transformer` for the fields.

    `bias_inits` maps the names of `Transformer._bias_inits` to initializers.
    """

    d_model: int
    ff_size: int
    num_heads: int
    dropout: float
    share: str
    dtype: str
    bias_inits: dict[str, FanInInit]

    def attention(self, bias: str) -> att.MultiHeadAttention:
        """Make the attention whose biases start as those of group `bias`."""
        sizes = (self.num_heads, self.d_model, self.dropout)
        return att.MultiHeadAttention(*sizes, self.share, self.bias_inits[bias], self.dtype)

    def feed_forward(self) -> att.FeedForward:
        """Make the feed-forward sublayer."""
        bias = self.bias_inits["feed_forward"]
        return att.FeedForward(self.ff_size, self.dropout, bias, self.dtype)


class EncoderLayer(nn.Module):
    """Self-attention over regions, then feed-forward; each with a norm before and a skip around.

    Attributes:
        config: sizes and initializers.
    """

    config: LayerConfig

    def setup(self) -> None:
        self.self_attn = self.config.attention("encoder")
        self.feed_forward = self.config.feed_forward()
        self.self_attn_norm = att.LayerNorm()
        self.feed_forward_norm = att.LayerNorm()
        self.drop = nn.Dropout(self.config.dropout)

    def __call__(
        self,
        x: Float[Array, "N D"],
        rows: Rows,
        mask: Bool[Array, "B R"],
        geometry: Float[Array, "B R R G"] | None,
        train: bool,
    ) -> Float[Array, "N D"]:
        """Transform regions `x`, which lie as `rows` says, attending only to those of `mask`."""
        y = self.self_attn_norm(x)
        memory, bias = self.self_attn.keys_values(y, rows), self.score_bias(geometry)
        y, _ = self.self_attn(y, memory, mask[:, None, None], rows, bias, train=train)
        x = x + self.drop(y, deterministic=not train)
        y = self.feed_forward(self.feed_forward_norm(x), train)
        return x + self.drop(y, deterministic=not train)

    def score_bias(self, geometry: Float[Array, "B R R G"] | None) -> Array | None:
        """Return a term of the attention scores: none here."""
        return None


class DecoderLayer(nn.Module):
    """Self-attention over words, attention over regions, feed-forward; norms and skips as above.

    Attributes:
        config: sizes and initializers.
    """

    config: LayerConfig

    def setup(self) -> None:
        self.self_attn = self.config.attention("decoder_self")
        self.cross_attn = self.config.attention("decoder_cross")
        self.feed_forward = self.config.feed_forward()
        self.self_attn_norm = att.LayerNorm()
        self.cross_attn_norm = att.LayerNorm()
        self.feed_forward_norm = att.LayerNorm()
        self.drop = nn.Dropout(self.config.dropout)

    def keys_values(self, memory: Float[Array, "N D"], rows: Rows) -> KeysValues:
        """Project the encoder's output for `cross_attn`, `[B, H, R, D/H]`: once per image."""
        return self.cross_attn.keys_values(memory, rows)

    def __call__(
        self,
        x: Float[Array, "N D"],
        rows: Rows,
        mask: Bool[Array, "B K Q T"],
        regions: KeysValues,
        region_mask: Bool[Array, "B R"],
        cache: KeysValues | None,
        position: Int[Array, "B K"] | None,
        train: bool,
    ) -> tuple[Float[Array, "N D"], KeysValues | None, Float[Array, "B K Q R"]]:
        """Transform words `x`.

        Args:
            x: Q words of K rows of B images: all of them (Q = T), or the newest (Q = 1) with
                `cache`.
            rows: layout of the words in `x`.
            mask: words of T that each word may attend to.
            regions: result of `keys_values`.
            region_mask: regions that may be attended to.
            cache: keys and values `[B, K, H, T, D/H]` of the words so far, or None.
            position: the place of the newest word in `cache`.
            train: whether dropout is on.

        Returns:
            The new `x`, the new `cache`, and the weights of the regions, mean over the heads.
        """
        b, k, q, _ = mask.shape
        y = self.self_attn_norm(x)
        memory = self.self_attn.keys_values(y, rows)
        if cache is not None and position is not None:
            cache = att.write_cache(cache, memory, position)
            memory = {name: leaf.reshape(b * k, *leaf.shape[2:]) for name, leaf in cache.items()}
        y, _ = self.self_attn(y, memory, mask.reshape(b * k, 1, q, -1), rows, train=train)
        x = x + self.drop(y, deterministic=not train)
        # All rows of an image query the same keys: they are folded into one axis, not repeated.
        y, mask = self.cross_attn_norm(x), region_mask[:, None, None]
        y, weights = self.cross_attn(y, regions, mask, rows, train=train)
        x = x + self.drop(y, deterministic=not train)
        y = self.feed_forward(self.feed_forward_norm(x), train)
        x = x + self.drop(y, deterministic=not train)
        return x, cache, jnp.mean(weights, axis=1).reshape(b, k, q, -1)
