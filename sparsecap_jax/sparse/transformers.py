"""The transformers in NumPy; the mathematics is that of `sparsecap_jax.models`."""

import math

import numpy as np
from jaxtyping import Float, Int

from sparsecap_jax.array_modules.numpy_arrays import log_softmax
from sparsecap_jax.formulas import MIN_WEIGHT, box_geometry, sinusoids, trigonometric
from sparsecap_jax.model_fields import RelationTransformerFields, TransformerFields
from sparsecap_jax.sparse.layers import Attention, Map, Weights, layer_norm, relu
from sparsecap_jax.types import PyTree, Regions


def _feed_forward(weights: Weights, path: str, width: int, inner: int) -> Map:
    first = weights.linear(f"{path}/w_1", width, inner)
    second = weights.linear(f"{path}/w_2", inner, width)
    return lambda rows: second(relu(first(rows)))


class _Layer:
    """The parts that encoder and decoder layers share."""

    def __init__(self, weights: Weights, path: str, fields: TransformerFields, share: str):
        width = fields.d_model
        sizes = width, fields.num_heads, share
        self.attention = Attention(weights, f"{path}/self_attn", *sizes)
        self.attention_norm = layer_norm(weights, f"{path}/self_attn_norm", width)
        self.forward = _feed_forward(weights, f"{path}/feed_forward", width, fields.ff_size)
        self.forward_norm = layer_norm(weights, f"{path}/feed_forward_norm", width)

    def transform(self, x: np.ndarray) -> np.ndarray:
        """Apply the feed-forward sublayer."""
        return x + self.forward(self.forward_norm(x))


class _EncoderLayer(_Layer):
    def __init__(self, weights: Weights, path: str, fields: "Transformer"):
        super().__init__(weights, path, fields, fields.share_attention_encoder)
        self.geometry = fields.geometry_kernels(weights, f"{path}/geometry")

    def __call__(self, x: np.ndarray, mask: np.ndarray, geometry: np.ndarray | None) -> np.ndarray:
        query, *memory = self.attention.project(self.attention_norm(x))
        bias = None
        if self.geometry is not None and geometry is not None:
            kernel, offset = self.geometry
            heads = np.maximum(geometry @ kernel + offset, np.float32(MIN_WEIGHT))
            bias = np.moveaxis(np.log(heads), -1, 1)
        mixed, _ = self.attention.attend(query, memory, mask[:, None, None], bias)
        return self.transform(x + self.attention.out(mixed))


class _DecoderLayer(_Layer):
    def __init__(self, weights: Weights, path: str, fields: TransformerFields):
        share = fields.share_attention_decoder
        super().__init__(weights, path, fields, share)
        sizes = fields.d_model, fields.num_heads, share
        self.cross = Attention(weights, f"{path}/cross_attn", *sizes, cross=True)
        self.cross_norm = layer_norm(weights, f"{path}/cross_attn_norm", fields.d_model)

    def __call__(self, x, cache, position, place, regions, mask):
        """Transform the newest words `x [B, K, D]`; see `models.transformer_layers`."""
        batch, rows, width = x.shape
        query, *new = self.attention.project(self.attention_norm(x).reshape(batch * rows, 1, width))
        written, length = [], int(position.max()) + 1
        for old, words in zip(cache, new, strict=True):
            leaf = old.copy()
            leaf[(*place, slice(None), position)] = words.reshape(batch, rows, *words.shape[1::2])
            written.append(leaf)
        memory = [
            leaf[..., :length, :].reshape(batch * rows, *leaf.shape[2:3], length, -1)
            for leaf in written
        ]
        seen = None
        if position.min() + 1 < length:
            seen = (np.arange(length) <= position.reshape(-1, 1))[:, None, None]
        mixed, _ = self.attention.attend(query, memory, seen)
        x = x + self.attention.out(mixed).reshape(x.shape)
        query = self.cross.query(self.cross_norm(x))
        mixed, weights = self.cross.attend(query, regions, mask)
        x = self.transform(x + self.cross.out(mixed))
        return x, written, weights.mean(axis=1)


class Transformer(TransformerFields):
    """The transformer captioner; fields and `weights`, see `models.transformer`."""

    def bind(self, weights: Weights) -> None:
        """Prepare the weights."""
        width = self.d_model
        self._src_embed = weights.linear("src_embed", self.feature_size, width)
        self._tgt_embed = weights.take("tgt_embed/embedding", self.vocab_size, width)
        encoder, decoder = (
            [f"{side}_layers_{i}" for i in sorted({*self.order(side)})]
            for side in ("encoder", "decoder")
        )
        self._encoder = [_EncoderLayer(weights, path, self) for path in encoder]
        self._decoder = [_DecoderLayer(weights, path, self) for path in decoder]
        self._encoder_norm = layer_norm(weights, "encoder_norm", width)
        self._decoder_norm = layer_norm(weights, "decoder_norm", width)
        self._logits = weights.linear("logits", width, self.vocab_size)
        self._positions = sinusoids(self.max_seq_length, width)

    def geometry_kernels(self, weights: Weights, path: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the weights of a layer's geometry: none here."""
        return None

    def encode(self, regions: Regions) -> PyTree:
        """Run the encoder, and project its output for every layer of the decoder."""
        x, geometry = self._relate(relu(self._src_embed(regions.features)), regions)
        for i in self.order("encoder"):
            x = self._encoder[i](x, regions.mask, geometry)
        x = self._encoder_norm(x)
        return {"mask": regions.mask, "cross": [layer.cross.memory(x) for layer in self._decoder]}

    def init_carry(self, context: PyTree, rows: int) -> PyTree:
        """Return the position of every row, and an empty cache of every decoder layer."""
        batch = len(context["mask"])
        width = self.d_model // self.num_heads
        shape = batch, rows, self.num_heads, self.max_seq_length, width
        count = 1 if self.share_attention_decoder == "kv" else 2
        cache = [[np.zeros(shape, np.float32)] * count for _ in self.order("decoder")]
        return {"position": np.zeros((batch, rows), np.int32), "cache": cache}

    def step(
        self,
        carry: PyTree,
        tokens: Int[np.ndarray, "B K"],
        context: PyTree,
        attention: list[np.ndarray] | None = None,
    ) -> tuple[PyTree, Float[np.ndarray, "B K V"]]:
        """Advance by one token; the weights of the regions are appended to `attention`.

        Beyond `max_seq_length` tokens log-probs are NaN, so that an overrun cannot go unnoticed.
        """
        position = np.minimum(carry["position"], self.max_seq_length - 1)
        x = self._tgt_embed[tokens] * np.float32(math.sqrt(self.d_model))
        x += self._positions[position]
        mask = None if context["mask"].all() else context["mask"][:, None, None]
        place = np.ogrid[: x.shape[0], : x.shape[1]]
        caches, seen = [], []
        for i, cache in zip(self.order("decoder"), carry["cache"], strict=True):
            x, cache, weights = self._decoder[i](
                x, cache, position, place, context["cross"][i], mask
            )
            caches.append(cache)
            seen.append(weights)
        if attention is not None:
            attention.append(sum(seen) / np.float32(len(seen)))
        log_probs = log_softmax(self._logits(self._decoder_norm(x)))
        log_probs[carry["position"] >= self.max_seq_length] = np.nan
        return {"position": carry["position"] + np.int32(1), "cache": caches}, log_probs

    def _relate(self, x: np.ndarray, regions: Regions) -> tuple[np.ndarray, np.ndarray | None]:
        return x, None


class RelationTransformer(RelationTransformerFields, Transformer):
    """The Object Relation Transformer; see `models.relation_transformer`."""

    def geometry_kernels(self, weights: Weights, path: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the heads' weights `[G, H]` and biases `[H]`."""
        size = 64 if self.box_embedding == "trig" else 4
        heads = range(self.num_heads)
        kernels = [weights.take(f"{path}/head_{head}/kernel", size, 1) for head in heads]
        biases = [weights.take(f"{path}/head_{head}/bias", 1) for head in heads]
        return np.concatenate(kernels, axis=1), np.concatenate(biases)

    def _relate(self, x: np.ndarray, regions: Regions) -> tuple[np.ndarray, np.ndarray]:
        geometry = box_geometry(regions.boxes)
        if self.box_embedding == "trig":
            geometry = trigonometric(geometry)
        return x * regions.mask[..., None], geometry
