"""Up-Down captioner: bottom-up region features, two LSTMs and top-down attention.

Anderson et al., "Bottom-Up and Top-Down Attention for Image Captioning and VQA", CVPR 2018, in the
form of the reference (`models/att_model.py`, `up_down_lstm`).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from sparsecap_jax.formulas import lstm_state
from sparsecap_jax.model_fields import UpDownFields
from sparsecap_jax.models.late_gradients import Groups, Kernels, Multiply
from sparsecap_jax.models.layers import Dropout, Linear, LSTMWeights
from sparsecap_jax.models.recurrent import Carry, Context, RecurrentModel
from sparsecap_jax.types import Regions


class Attention(nn.Module):
    """Additive attention of a query over regions, its softmax masked and renormalised.

    Attributes:
        size: width A of the hidden layer.
        dtype: see `Linear`.
    """

    size: int
    dtype: str = "float32"

    def setup(self) -> None:
        self.h2att = Linear(self.size, self.dtype)
        self.alpha = Linear(1, self.dtype)

    def __call__(
        self,
        query: Float[Array, "B K H"],
        keys: Float[Array, "B R A"],
        mask: Float[Array, "B R"],
    ) -> Float[Array, "B K R"]:
        """Return weights that sum to 1 over the valid regions.

        As in the reference the softmax runs over all R regions before the mask is applied; the
        renormalisation makes padding drop out exactly.
        """
        hidden = jnp.tanh(keys[:, None] + self.h2att(query)[:, :, None])
        weights = jax.nn.softmax(self.alpha(hidden)[..., 0], axis=-1) * mask[:, None]
        weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
        self.sow("intermediates", "attention", weights)
        return weights


class UpDown(UpDownFields, RecurrentModel):
    """The Up-Down captioner."""

    def setup(self) -> None:
        rnn, dtype = self.rnn_size, self.compute_dtype
        normal = nn.initializers.normal(1.0)  # as in PyTorch
        self.embed = nn.Embed(self.vocab_size, self.embed_size, embedding_init=normal)
        self.fc_embed = Linear(rnn, dtype)
        self.region_embed = Linear(rnn, dtype)
        self.ctx2att = Linear(self.attention_size, dtype)
        self.attention = Attention(self.attention_size, dtype)
        self.att_lstm = LSTMWeights(2 * rnn + self.embed_size, rnn)
        self.lang_lstm = LSTMWeights(2 * rnn, rnn)
        widths = [rnn] * (self.logit_layers - 1) + [self.vocab_size]
        self.logit = [Linear(width, dtype) for width in widths]
        self.drop = Dropout(self.dropout)

    def encode(self, regions: Regions, *, train: bool = False) -> Context:
        """Embed the visual side: features, mask and fc.

        Returns:
            `fc [B, H]`, `regions [B, R, H]` (0 where padded), `keys [B, R, A]`, `mask [B, R]`, and
            `fc_gates [B, 4H]`, the image's share of the attention LSTM's pre-activations.
        """
        mask = jnp.asarray(regions.mask).astype(jnp.float32)
        fc = self._dropped_relu(self.fc_embed(jnp.asarray(regions.fc)), train)
        embedded = self._dropped_relu(self.region_embed(jnp.asarray(regions.features)), train)
        embedded = embedded * mask[..., None]
        kernel = self.get_variable("prepared", "fc_kernel", self._fc_kernel())
        fc_gates = self._matmul(fc, kernel) + self.att_lstm()[2]
        keys = self.ctx2att(embedded)
        return {"fc": fc, "regions": embedded, "keys": keys, "mask": mask, "fc_gates": fc_gates}

    def init_carry(self, context: Context, rows: int) -> Carry:
        """Return zero states of both LSTMs, `[B, rows, H]` each."""
        shape = (context["fc"].shape[0], rows, self.rnn_size)
        names = ("h_att", "c_att", "h_lang", "c_lang")
        return {name: jnp.zeros(shape, jnp.float32) for name in names}

    def prepare(self) -> None:
        """Store kernels that are parts of the attention LSTM's."""
        super().prepare()
        self.put_variable("prepared", "fc_kernel", self._fc_kernel())

    def _fc_kernel(self) -> Array:
        return self.att_lstm()[0][self.rnn_size : 2 * self.rnn_size]

    def _kernels(self) -> Kernels:
        """Return both LSTMs' kernels; the attention LSTM's input kernel is split by input."""
        rnn = self.rnn_size
        att_ih, att_hh, _ = self.att_lstm()
        lang_ih, lang_hh, lang_bias = self.lang_lstm()
        return {
            "att_lang": att_ih[:rnn],  # input order of the attention LSTM: h_lang, fc, word
            "att_word": att_ih[2 * rnn :],
            "att_hh": att_hh,
            "lang_ih": lang_ih,  # of the language LSTM: attended regions, h_att
            "lang_hh": lang_hh,
            "lang_bias": lang_bias,
        }

    def _word_inputs(self, kernels: Kernels, tokens: Array, train: bool) -> Array:
        """Return the words' share `[..., 4H]` of the attention LSTM's pre-activations."""
        return self._matmul(self._dropped_relu(self.embed(tokens), train), kernels["att_word"])

    def _groups(self) -> Groups:
        return ("att_lang", "att_hh"), ("lang_ih", "lang_hh")

    def _recur(
        self,
        carry: Carry,
        words: Array,
        multiply: Multiply,
        kernels: Kernels,
        context: Context,
        train: bool,
    ) -> tuple[Carry, Array]:
        """Advance both LSTMs; return the new carry and the language LSTM's state `[B, K, H]`."""
        gates = words + context["fc_gates"][:, None]
        gates = multiply(gates, att_lang=carry["h_lang"], att_hh=carry["h_att"])
        h_att, c_att = lstm_state(gates, carry["c_att"])
        weights = self.attention(h_att, context["keys"], context["mask"])
        attended = self._matmul(weights, context["regions"])
        seen = jnp.concatenate([attended, h_att], axis=-1)
        gates = multiply(kernels["lang_bias"], lang_ih=seen, lang_hh=carry["h_lang"])
        h_lang, c_lang = lstm_state(gates, carry["c_lang"])
        return {"h_att": h_att, "c_att": c_att, "h_lang": h_lang, "c_lang": c_lang}, h_lang

    def _log_probs(self, hidden: Array, train: bool) -> Array:
        """Apply the logit layers with ReLU and dropout between them, then log-softmax over V."""
        hidden = self.drop(hidden, deterministic=not train)
        for layer in self.logit[:-1]:
            hidden = self._dropped_relu(layer(hidden), train)
        return jax.nn.log_softmax(self.logit[-1](hidden), axis=-1)

    def _dropped_relu(self, inputs: Array, train: bool) -> Array:
        return self.drop.relu(inputs, deterministic=not train)
