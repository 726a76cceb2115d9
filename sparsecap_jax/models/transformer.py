"""Transformer captioner: an encoder over region features and a decoder over words.

Vaswani et al., "Attention Is All You Need", NeurIPS 2017, in the form of the reference
(`models/transformer.py`): norms come before the sublayers, regions have no positions. Projections
and layers can be shared as in Tan et al., "ACORT: A Compact Object Relation Transformer for
Parameter Efficient Image Captioning", Neurocomputing 2022.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from sparsecap_jax.formulas import sinusoids
from sparsecap_jax.model_fields import TransformerFields
from sparsecap_jax.models import attention as att
from sparsecap_jax.models.attention import KeysValues
from sparsecap_jax.models.interface import CaptionModel
from sparsecap_jax.models.layers import Dropout, FanInInit, Linear, torch_uniform, xavier_uniform
from sparsecap_jax.models.packing import Rows, nan_if_lost, pack_rows
from sparsecap_jax.models.transformer_layers import DecoderLayer, EncoderLayer, LayerConfig
from sparsecap_jax.types import ArrayLike, Regions

Context = dict[str, Any]  # arrays, and keys and values of each layer
Carry = dict[str, Any]


class Transformer(TransformerFields, CaptionModel):
    """The transformer captioner."""

    encoder_layer = EncoderLayer

    def setup(self) -> None:
        encoder, decoder = self.encoder_layer, DecoderLayer
        if self.remat:
            encoder = nn.remat(encoder, static_argnums=(5,))
            decoder = nn.remat(decoder, static_argnums=(8,))
        biases = self._bias_inits()
        sizes = self.d_model, self.ff_size, self.num_heads, self.dropout
        config = LayerConfig(*sizes, self.share_attention_encoder, self.compute_dtype, biases)
        self.encoder_layers = [encoder(config) for _ in set(self.order("encoder"))]
        config = dataclasses.replace(config, share=self.share_attention_decoder)
        self.decoder_layers = [decoder(config) for _ in set(self.order("decoder"))]
        self.encoder_norm = att.LayerNorm()
        self.decoder_norm = att.LayerNorm()
        self.src_embed = self._src_embed()
        xavier = nn.initializers.xavier_uniform()
        self.tgt_embed = nn.Embed(self.vocab_size, self.d_model, embedding_init=xavier)
        self.logits = Linear(self.vocab_size, self.compute_dtype, xavier_uniform)
        self.drop = nn.Dropout(self.dropout)
        self.source_drop = Dropout(self.source_dropout)

    def encode(self, regions: Regions, *, train: bool = False) -> Context:
        """Run the encoder, and project its output for every layer of the decoder.

        Returns:
            `memory [B, R, D]`, `mask [B, R]`, and `cross`, the keys and values `[B, H, R, D/H]` of
            each decoder layer.
        """
        features, mask = jnp.asarray(regions.features), jnp.asarray(regions.mask)
        # Two axes, not three: XLA then transposes nothing for the gradients of the weights.
        rows = Rows(mask.shape[0], 1, mask.shape[1])
        x = self.src_embed(features.reshape(-1, features.shape[-1]))
        x = self.source_drop.relu(x, deterministic=not train)
        x, geometry = self._relate(x, regions)
        for i in self.order("encoder"):
            x = self.encoder_layers[i](x, rows, mask, geometry, train)
        x = self.encoder_norm(x)
        cross = tuple(layer.keys_values(x, rows) for layer in self.decoder_layers)
        return {"memory": rows.spread(x), "mask": mask, "cross": cross}

    def init_carry(self, context: Context, rows: int) -> Carry:
        """Return `position [B, K]`, int32 zeros, and an empty `cache` of every decoder layer.

        Leaves of a cache are `[B, K, H, max_seq_length, D/H]`. Shared layers have a cache of their
        own for each application.
        """
        batch = context["mask"].shape[0]
        shape = (batch, rows, self.num_heads, self.max_seq_length, self.d_model // self.num_heads)
        names = ("key",) if self.share_attention_decoder == "kv" else ("key", "value")
        cache = tuple(
            {name: jnp.zeros(shape, jnp.float32) for name in names} for _ in self.order("decoder")
        )
        return {"position": jnp.zeros((batch, rows), jnp.int32), "cache": cache}

    def step(
        self, carry: Carry, tokens: Int[ArrayLike, "B K"], context: Context, *, train: bool = False
    ) -> tuple[Carry, Float[Array, "B K V"]]:
        """Advance by one token and return the log-probs of the next.

        Every token given so far is looked at, PAD included.
        """
        tokens, position = jnp.asarray(tokens), carry["position"]
        places = jnp.arange(self.max_seq_length, dtype=jnp.int32)
        mask = places <= position[..., None, None]
        # `take` fills positions beyond the table with NaN: an overrun cannot go unnoticed.
        table = jnp.asarray(sinusoids(self.max_seq_length, self.d_model))
        positions = jnp.take(table, position.reshape(-1), axis=0)
        x = self._embed(tokens.reshape(-1), positions, train)
        rows = Rows(tokens.shape[0], tokens.shape[1], 1)
        x, cache, weights = self._decoder(x, rows, mask, context, carry["cache"], position, train)
        self.sow("intermediates", "attention", weights[:, :, 0])
        log_probs = self._log_probs(x).reshape(*tokens.shape, -1)
        return {"position": position + 1, "cache": cache}, log_probs

    def __call__(
        self, regions: Regions, tokens: Int[ArrayLike, "B K T"], *, train: bool = False
    ) -> Float[Array, "B K T V"]:
        """Teacher forcing: log-probs of the token that follows each of `tokens [B, K, T]`."""
        return self.decode(self.encode(regions, train=train), tokens, train=train)

    def decode(
        self,
        context: Context,
        tokens: Int[ArrayLike, "B K T"],
        token_mask: Bool[ArrayLike, "B K T"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "B K T V"]:
        """Teacher forcing on encoded images, as `__call__`.

        `token_mask` has the tokens to look at; by default all but PAD, as in the reference.
        """
        tokens = jnp.asarray(tokens)
        seen = tokens != self.pad_id if token_mask is None else jnp.asarray(token_mask)
        x = self._teacher_force(context, tokens, seen, Rows(*tokens.shape), train)
        return self._log_probs(x).reshape(*tokens.shape, -1)

    def decode_packed(
        self,
        context: Context,
        tokens: Int[ArrayLike, "B K T"],
        token_mask: Bool[ArrayLike, "B K T"],
        size: int,
        *,
        train: bool = False,
    ) -> tuple[Float[Array, "N V"], Int[Array, " N"]]:
        """As `CaptionModel.decode_packed`; other tokens cost no work and are not looked at."""
        tokens, seen = jnp.asarray(tokens), jnp.asarray(token_mask)
        rows = pack_rows(seen, size)
        x = self._teacher_force(context, tokens, seen, rows, train)
        return self._log_probs(nan_if_lost(x, seen)), rows.flat_places()

    def _teacher_force(
        self, context: Context, tokens: Array, seen: Array, rows: Rows, train: bool
    ) -> Float[Array, "N D"]:
        """Run the decoder on whole captions, in the layout of `rows`."""
        length = tokens.shape[-1]
        mask = seen[:, :, None] & jnp.tril(jnp.ones((length, length), bool))
        places = rows.flat_places()
        words = rows.take_tokens(tokens, self.pad_id)
        table = jnp.asarray(sinusoids(length, self.d_model))
        x = self._embed(words, table[places % length], train)
        x, _, weights = self._decoder(x, rows, mask, context, None, None, train)
        self.sow("intermediates", "attention", weights)
        return x

    def _decoder(
        self,
        x: Array,
        rows: Rows,
        mask: Array,
        context: Context,
        caches: tuple[KeysValues, ...] | None,
        position: Array | None,
        train: bool,
    ) -> tuple[Array, tuple[KeysValues | None, ...], Array]:
        """Run the decoder's stack; takes what `DecoderLayer` does, one cache per application.

        Also returns the weights `[B, K, Q, R]` of the regions, mean over heads and layers.
        """
        order = self.order("decoder")
        written, weights = [], []
        for i, cache in zip(order, caches or (None,) * len(order), strict=True):
            args = (rows, mask, context["cross"][i], context["mask"], cache, position, train)
            x, cache, seen = self.decoder_layers[i](x, *args)
            written.append(cache)
            weights.append(seen)
        return self.decoder_norm(x), tuple(written), sum(weights) / jnp.float32(len(order))

    def _embed(self, tokens: Array, positions: Array, train: bool) -> Float[Array, "N D"]:
        x = self.tgt_embed(tokens) * jnp.float32(math.sqrt(self.d_model)) + positions
        return self.drop(x, deterministic=not train)

    def _log_probs(self, x: Array) -> Array:
        return jax.nn.log_softmax(self.logits(x), axis=-1)

    def _relate(
        self, x: Float[Array, "N D"], regions: Regions
    ) -> tuple[Float[Array, "N D"], Float[Array, "B R R G"] | None]:
        """Return the encoder's input and the geometry of its regions: none here."""
        return x, None

    def _src_embed(self) -> Linear:
        return Linear(self.d_model, self.compute_dtype, xavier_uniform)

    def _bias_inits(self) -> dict[str, FanInInit]:
        """Return initializers of the biases that the reference starts equal, see `tied_bias`."""
        if not self.is_initializing():
            return dict.fromkeys(_BIAS_GROUPS, torch_uniform)
        keys = jax.random.split(self.make_rng("params"), len(_BIAS_GROUPS))
        return {name: att.tied_bias(key) for name, key in zip(_BIAS_GROUPS, keys, strict=True)}


_BIAS_GROUPS = ("encoder", "decoder_self", "decoder_cross", "feed_forward", "geometry")
