"""Soft-Attention captioner: one LSTM or GRU that looks at image regions between words.

Xu et al., "Show, Attend and Tell", ICML 2015 (arXiv 1502.03044), in the form that the papers on
sparse captioning prune (their TensorFlow code, github jiahuei/tf-sparse-captioning): the image
starts the recurrent state; attention follows the recurrent cell, and the attended values are input
of the next step (zero at the first); the output layer sees the cell's output alone. There is no
layer norm, and no bias but the cell's and the output layer's.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from sparsecap_jax.formulas import lstm_state
from sparsecap_jax.model_fields import SoftAttentionFields
from sparsecap_jax.models.late_gradients import Groups, Kernels, Multiply
from sparsecap_jax.models.layers import CellWeights, gru_state
from sparsecap_jax.models.precision import dot_general
from sparsecap_jax.models.recurrent import Carry, Context, RecurrentModel
from sparsecap_jax.types import Regions

_MASKED = -1e9  # finite, so that an image without any region still gives numbers


class SoftAttention(SoftAttentionFields, RecurrentModel):
    """The Soft-Attention captioner.

    Regions may be detected objects or the cells of a feature grid in any order. Kernels start
    Glorot-uniform; biases at 0, that of the forget gate and of the GRU's gates at 1.

    """

    def setup(self) -> None:
        inputs, rnn = self.embed_size + self.attention_size, self.rnn_size
        glorot = nn.initializers.glorot_uniform()
        vector = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
        self.embed = nn.Embed(self.vocab_size, self.embed_size, embedding_init=glorot)
        dense = functools.partial(nn.Dense, dot_general=dot_general(self.compute_dtype))
        linear = functools.partial(dense, use_bias=False, kernel_init=glorot)
        self.init_state = linear(rnn)
        self.keys = linear(self.attention_size)
        self.values = linear(self.attention_size)
        self.query = linear(self.attention_size)
        self.score = linear(1, kernel_init=vector)
        if self.cell == "lstm":
            self.lstm = CellWeights(inputs, rnn, 4 * rnn, (0.0, 1.0, 0.0, 0.0))  # i, f, g, o
        else:
            self.gru_gates = CellWeights(inputs, rnn, 2 * rnn, (1.0, 1.0))  # reset, update
            self.gru_candidate = CellWeights(inputs, rnn, rnn, (0.0,))
        self.logit = dense(self.vocab_size, kernel_init=glorot)
        self.drop = nn.Dropout(self.dropout)
        self.drop_weights = nn.Dropout(self.attention_dropout)

    def encode(self, regions: Regions, *, train: bool = False) -> Context:
        """Project the visual side: features, mask and fc; `train` has no effect.

        Returns:
            `hidden [B, H]`, the state that decoding starts from; `keys` and `values [B, R, A]`;
            `mask [B, R]`.
        """
        features = jnp.asarray(regions.features)
        return {
            "hidden": self.init_state(jnp.asarray(regions.fc)),
            "keys": self.keys(features),
            "values": self.values(features),
            "mask": jnp.asarray(regions.mask),
        }

    def init_carry(self, context: Context, rows: int) -> Carry:
        """Return each row's state `[B, rows, H]` and attended values `[B, rows, A]`.

        The image gives the hidden state; an LSTM's cell and the attended values start at 0.
        """
        hidden = context["hidden"]
        shape = (hidden.shape[0], rows)
        carry = {
            "h": jnp.broadcast_to(hidden[:, None], (*shape, self.rnn_size)),
            "attended": jnp.zeros((*shape, self.attention_size), jnp.float32),
        }
        if self.cell == "lstm":
            carry["c"] = jnp.zeros((*shape, self.rnn_size), jnp.float32)
        return carry

    def _log_probs(self, output: Array, train: bool) -> Array:
        return jax.nn.log_softmax(self.logit(output), axis=-1)

    def _kernels(self) -> Kernels:
        """Return the cell's weights, those of the input split into its parts: word, attended."""
        if self.cell == "lstm":
            kernel_ih, state, bias = self.lstm()
            kernels = {"state": state}
        else:
            gates_ih, gates_hh, gates_bias = self.gru_gates()
            candidate_ih, candidate_hh, candidate_bias = self.gru_candidate()
            kernel_ih = jnp.concatenate([gates_ih, candidate_ih], axis=-1)
            bias = jnp.concatenate([gates_bias, candidate_bias])
            kernels = {"state": gates_hh, "candidate": candidate_hh}
        word, attended = jnp.split(kernel_ih, [self.embed_size])
        return {"word": word, "attended": attended, "bias": bias, **kernels}

    def _word_inputs(self, kernels: Kernels, tokens: Array, train: bool) -> Array:
        """Return the words' share of the cell's pre-activations, `[..., 4H]` (GRU: `[..., 3H]`)."""
        words = self.drop(self.embed(tokens), deterministic=not train)
        return self._matmul(words, kernels["word"]) + kernels["bias"]

    def _groups(self) -> Groups:
        if self.cell == "lstm":
            return (("attended", "state"),)
        return ("attended",), ("state",), ("candidate",)

    def _recur(
        self,
        carry: Carry,
        words: Array,
        multiply: Multiply,
        kernels: Kernels,
        context: Context,
        train: bool,
    ) -> tuple[Carry, Array]:
        """Advance the cell, then attend; return the new carry and the output `[B, K, H]`.

        Dropout of the output touches the query and the logits, never the state itself.
        """
        attended = self.drop(carry["attended"], deterministic=not train)
        if self.cell == "lstm":
            gates = multiply(words, attended=attended, state=carry["h"])
            hidden, cell = lstm_state(gates, carry["c"])
            state = {"h": hidden, "c": cell}
        else:
            inputs = multiply(words, attended=attended)
            hidden = gru_state(inputs, carry["h"], multiply)
            state = {"h": hidden}
        output = self.drop(hidden, deterministic=not train)
        weights = self._attend(output, context)
        self.sow("intermediates", "attention", weights)
        weights = self.drop_weights(weights, deterministic=not train)
        attended = self._matmul(weights, context["values"])
        return {**state, "attended": attended}, output

    def _attend(self, query: Float[Array, "B K H"], context: Context) -> Float[Array, "B K R"]:
        """Return the weights of additive attention, which sum to 1 over the valid regions."""
        hidden = jnp.tanh(context["keys"][:, None] + self.query(query)[:, :, None])
        scores = jnp.where(context["mask"][:, None], self.score(hidden)[..., 0], _MASKED)
        return jax.nn.softmax(scores, axis=-1)
