"""Fields of the models; free of JAX, for configs and for the sparse runtime.

Each model is a Linen module, and a model of NumPy in `sparsecap_jax.sparse`, with these fields.
"""

import dataclasses
from typing import Annotated, ClassVar, Literal

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.settings import Range

MAX_LAYERS = 64
"""Layers of an encoder or decoder, ten times those of the papers: a config may come from a file."""


@dataclasses.dataclass
class RecurrentFields:
    """Fields of every model with a recurrent state.

    Attributes:
        vocab_size: number of tokens V.
        feature_size: width D of region and image features.
        embed_size: width E of the word embedding.
        rnn_size: width H of the recurrent state.
        attention_size: width A of the attention's hidden layer.
        dropout: dropout rate.
        compute_dtype: "float32" or "bfloat16", see `sparsecap_jax.models.precision`.
        remat: whether training recomputes each word's step in the backward pass to save memory.
    """

    vocab_size: Annotated[int, Range(1, 2**20)]
    feature_size: Annotated[int, Range(1, 2**16)] = 2048
    embed_size: Annotated[int, Range(1, 2**16)] = 1000
    rnn_size: Annotated[int, Range(1, 2**16)] = 1000
    attention_size: Annotated[int, Range(1, 2**16)] = 512
    dropout: Annotated[float, Range(0, 1, open_high=True)] = 0.5
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False


@dataclasses.dataclass
class UpDownFields(RecurrentFields):
    """Fields of Up-Down.

    Attributes:
        rnn_size: width H of both LSTMs and of the embedded features.
        dropout: dropout rate after every embedding and after the language LSTM.
        logit_layers: number of layers from the language LSTM to the logits.
        others: see `RecurrentModel`.
    """

    logit_layers: Annotated[int, Range(1, 64)] = 1


@dataclasses.dataclass
class SoftAttentionFields(RecurrentFields):
    """Fields of Soft-Attention.

    Attributes:
        attention_size: width A of the attention's hidden layer and of what it gathers.
        dropout: rate on the cell's input and output; the papers take 0.11 for pruned models.
        cell: "lstm" or "gru".
        attention_dropout: rate on the attention weights; 0.03 for pruned models.
        others: see `RecurrentModel`.
    """

    embed_size: Annotated[int, Range(1, 2**16)] = 256
    rnn_size: Annotated[int, Range(1, 2**16)] = 512
    dropout: Annotated[float, Range(0, 1, open_high=True)] = 0.35
    cell: Literal["lstm", "gru"] = "lstm"
    attention_dropout: Annotated[float, Range(0, 1, open_high=True)] = 0.1


@dataclasses.dataclass
class TransformerFields:
    """Fields of the transformer.

    Attributes:
        vocab_size: number of tokens V.
        feature_size: width of region features.
        d_model: width D of the layers.
        ff_size: width inside the feed-forward sublayers.
        num_layers: number of layers of the encoder and of the decoder, where none are shared.
        num_heads: number of attention heads H.
        dropout: dropout rate of attention weights, feed-forward, sublayers and embedded words.
        source_dropout: dropout rate of the embedded regions.
        max_seq_length: number of tokens that `step` can be given; log-probs beyond it are NaN.
        share_attention_encoder: "", "kv" or "qk", see `MultiHeadAttention.share`.
        share_attention_decoder: the same for both attentions of the decoder.
        share_layer_encoder: for each application the layer it uses, such as (0, 0, 0, 1, 1, 1);
            () for `num_layers` separate layers.
        share_layer_decoder: the same for the decoder.
        pad_id: token that teacher forcing does not look at.
        compute_dtype: "float32" or "bfloat16", see `sparsecap_jax.models.precision`.
        remat: whether training recomputes each layer in the backward pass to save memory.
    """

    vocab_size: Annotated[int, Range(1, 2**20)]
    feature_size: Annotated[int, Range(1, 2**16)] = 2048
    d_model: Annotated[int, Range(2, 2**14)] = 512
    ff_size: Annotated[int, Range(1, 2**16)] = 2048
    num_layers: Annotated[int, Range(1, MAX_LAYERS)] = 6
    num_heads: Annotated[int, Range(1, 64)] = 8
    dropout: Annotated[float, Range(0, 1, open_high=True)] = 0.1
    source_dropout: Annotated[float, Range(0, 1, open_high=True)] = 0.5
    max_seq_length: Annotated[int, Range(1, 5000)] = 18
    share_attention_encoder: Literal["", "kv", "qk"] = ""
    share_attention_decoder: Literal["", "kv", "qk"] = ""
    share_layer_encoder: Annotated[tuple[int, ...], Range(0)] = ()
    share_layer_decoder: Annotated[tuple[int, ...], Range(0)] = ()
    pad_id: Annotated[int, Range(0)] = 0
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False

    def __post_init__(self):
        if self.d_model % 2 or self.d_model % self.num_heads:
            raise ConfigError(
                f"model.d_model is {self.d_model}; expected an even multiple of model.num_heads "
                f"({self.num_heads})"
            )
        for field in ("share_layer_encoder", "share_layer_decoder"):
            order = getattr(self, field)
            if set(order) != set(range(len(set(order)))) or len(order) > MAX_LAYERS:
                raise ConfigError(
                    f"model.{field} is {order!s:.200}; expected at most {MAX_LAYERS} layer "
                    "numbers from 0 on without gaps, such as (0, 0, 0, 1, 1, 1)"
                )
        module = super()
        if hasattr(module, "__post_init__"):  # of Linen
            module.__post_init__()

    def order(self, side: str) -> tuple[int, ...]:
        """Return the index of the layer that each application of `side` uses."""
        return getattr(self, f"share_layer_{side}") or tuple(range(self.num_layers))


@dataclasses.dataclass
class RelationTransformerFields(TransformerFields):
    """Fields of the Object Relation Transformer.

    Attributes:
        box_embedding: "trig" for the 64-d trigonometric embedding of geometry, "plain" for its
            four numbers as they are.
        others: see `Transformer`.
    """

    box_embedding: Literal["trig", "plain"] = "trig"

    needs_boxes: ClassVar[bool] = True
