"""Soft-Attention captioner: one LSTM or GRU that looks at image regions between words.

Xu et al., "Show, Attend and Tell", ICML 2015 (arXiv 1502.03044), in the form that the papers on
sparse captioning prune (their TensorFlow code, github jiahuei/tf-sparse-captioning): the image
starts the recurrent state; attention follows the recurrent cell, and what it gathers is input of
the next step (zero at the first); the output layer sees the cell's output alone. There is no
layer norm, and no bias but the cell's and the output layer's.
"""

import functools
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from sparsecap_jax.models.cells import CellWeights, gru_state
from sparsecap_jax.models.layers import lstm_state
from sparsecap_jax.models.packing import nan_if_lost, pack_rows
from sparsecap_jax.models.precision import dot_general, matmul
from sparsecap_jax.models.scheduled_sampling import sampled_teacher_forcing
from sparsecap_jax.settings import Range
from sparsecap_jax.types import ArrayLike, Regions

Context = dict[str, Array]
Carry = dict[str, Array]
Kernels = dict[str, Array]

_MASKED = -1e9  # finite, so that an image without any region still gives numbers


class SoftAttention(nn.Module):
    """The Soft-Attention captioner behind the interface described in `sparsecap_jax.models`.

    Regions may be detected objects or the cells of a feature grid in any order. Kernels start
    Glorot-uniform; biases at 0, that of the forget gate and of the GRU's gates at 1.

    Attributes:
        vocab_size: number of tokens V.
        feature_size: width D of region and image features.
        embed_size: width E of the word embedding.
        rnn_size: width H of the recurrent state.
        attention_size: width A of the attention's hidden layer and of what it gathers.
        cell: "lstm" or "gru".
        dropout: rate on the cell's input and output; the papers take 0.11 for pruned models.
        attention_dropout: rate on the attention weights; 0.03 for pruned models.
        compute_dtype: "float32" or "bfloat16", see `sparsecap_jax.models.precision`.
        remat: whether training recomputes each word's step in the backward pass to save memory.
    """

    vocab_size: Annotated[int, Range(1)]
    feature_size: Annotated[int, Range(1)] = 2048
    embed_size: Annotated[int, Range(1)] = 256
    rnn_size: Annotated[int, Range(1)] = 512
    attention_size: Annotated[int, Range(1)] = 512
    cell: Literal["lstm", "gru"] = "lstm"
    dropout: Annotated[float, Range(0, 1, open_high=True)] = 0.35
    attention_dropout: Annotated[float, Range(0, 1, open_high=True)] = 0.1
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False

    needs_boxes: ClassVar[bool] = False
    samples_inputs: ClassVar[bool] = True

    def setup(self):
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
        """Project the visual side, once per image.

        Args:
            regions: features `[B, R, D]`, mask `[B, R]`, fc `[B, D]`.
            train: without effect here; part of the interface.

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
        """Return the state of each row, `[B, rows, H]`, and what it has gathered, `[B, rows, A]`.

        The image gives the hidden state; an LSTM's cell and the gathered values start at 0.
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

    def step(
        self, carry: Carry, tokens: Int[Array, "B K"], context: Context, *, train: bool = False
    ) -> tuple[Carry, Float[Array, "B K V"]]:
        """Advance by one token and return the log-probs of the next."""
        return self._advance(carry, tokens, context, self._kernels(), train)

    def __call__(
        self,
        regions: Regions,
        tokens: Int[ArrayLike, "B K T"],
        *,
        train: bool = False,
        sample_prob: Float[ArrayLike, ""] | None = None,
    ) -> Float[Array, "B K T V"]:
        """Teacher forcing: log-probs of the token that follows each of `tokens [B, K, T]`.

        Only what depends on the recurrent state runs inside the scan: image and word projections
        are computed before it, the logits after it in one matmul; unless `sample_prob` is given,
        with which tokens become the model's own, see `sampled_teacher_forcing`.
        """
        tokens, context = jnp.asarray(tokens), self.encode(regions, train=train)
        kernels = self._kernels()
        if sample_prob is not None:
            carry = self.init_carry(context, tokens.shape[1])
            advance = functools.partial(SoftAttention._advance, train=train)
            return sampled_teacher_forcing(
                self, advance, carry, tokens, sample_prob, context, kernels
            )
        words = self._word_inputs(kernels, tokens, train)
        return self._log_probs(self._unroll(context, words, kernels, train))

    def decode_packed(
        self,
        context: Context,
        tokens: Int[ArrayLike, "B K T"],
        token_mask: Bool[ArrayLike, "B K T"],
        size: int,
        *,
        train: bool = False,
    ) -> tuple[Float[Array, "N V"], Int[Array, " N"]]:
        """Teacher forcing on encoded images, without work on words left out but in the recurrence.

        Args:
            context: what `encode` returned.
            tokens: captions from BOS on.
            token_mask: which tokens count, in each caption a prefix; the others get no answer.
            size: number N of slots for tokens, at least the number of those that count; results
                are NaN where it is less.
            train: whether dropout is on (rng stream "dropout").

        Returns:
            Log-probs of the token that follows each counting token, and each one's place in the
            flattened `[B * K * T]`; slots without a token have place B * K * T.
        """
        tokens, seen = jnp.asarray(tokens), jnp.asarray(token_mask)
        kernels, rows = self._kernels(), pack_rows(seen, size)
        words = self._word_inputs(kernels, rows.take_tokens(tokens, 0), train)
        words = rows.spread(words, 1).reshape(*tokens.shape, -1)
        hidden = rows.gather(self._unroll(context, words, kernels, train))
        return self._log_probs(nan_if_lost(hidden, seen)), rows.flat_places()

    def _unroll(
        self, context: Context, words: Float[Array, "B K T G"], kernels: Kernels, train: bool
    ) -> Float[Array, "B K T H"]:
        """Run the cell and its attention over all words; returns the outputs."""

        def recur(module, carry, words, kernels, context):
            return module._recur(carry, words, kernels, context, train)

        scan = nn.scan(
            nn.remat(recur, prevent_cse=False) if self.remat else recur,
            variable_broadcast="params",
            variable_axes={"intermediates": 2},
            split_rngs={"params": False, "dropout": True},
            in_axes=(2, nn.broadcast, nn.broadcast),
            out_axes=2,
        )
        carry = self.init_carry(context, words.shape[1])
        return scan(self, carry, words, kernels, context)[1]

    def _log_probs(self, output: Float[Array, "... H"]) -> Float[Array, "... V"]:
        return jax.nn.log_softmax(self.logit(output), axis=-1)

    def _kernels(self) -> Kernels:
        """The cell's weights, those of the input split by what they multiply: word, attended."""
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
        """Words' share of the cell's pre-activations, `[..., 4H]` (GRU: `[..., 3H]`)."""
        words = self.drop(self.embed(tokens), deterministic=not train)
        return self._matmul(words, kernels["word"]) + kernels["bias"]

    def _advance(
        self, carry: Carry, tokens: Array, context: Context, kernels: Kernels, train: bool
    ) -> tuple[Carry, Array]:
        """From one token to the log-probs of the next."""
        words = self._word_inputs(kernels, tokens, train)
        carry, output = self._recur(carry, words, kernels, context, train)
        return carry, self._log_probs(output)

    def _recur(
        self, carry: Carry, words: Array, kernels: Kernels, context: Context, train: bool
    ) -> tuple[Carry, Array]:
        """One step of the cell, then attention; returns the new carry and the output `[B, K, H]`.

        Dropout of the output touches the query and the logits, never the state itself.
        """
        attended = self.drop(carry["attended"], deterministic=not train)
        inputs = words + self._matmul(attended, kernels["attended"])
        if self.cell == "lstm":
            gates = inputs + self._matmul(carry["h"], kernels["state"])
            hidden, cell = lstm_state(gates, carry["c"])
            state = {"h": hidden, "c": cell}
        else:
            weights = kernels["state"], kernels["candidate"]
            hidden = gru_state(inputs, carry["h"], *weights, self.compute_dtype)
            state = {"h": hidden}
        output = self.drop(hidden, deterministic=not train)
        weights = self._attend(output, context)
        self.sow("intermediates", "attention", weights)
        weights = self.drop_weights(weights, deterministic=not train)
        attended = self._matmul(weights, context["values"])
        return {**state, "attended": attended}, output

    def _attend(self, query: Float[Array, "B K H"], context: Context) -> Float[Array, "B K R"]:
        """Additive attention: weights that sum to 1 over the valid regions."""
        hidden = jnp.tanh(context["keys"][:, None] + self.query(query)[:, :, None])
        scores = jnp.where(context["mask"][:, None], self.score(hidden)[..., 0], _MASKED)
        return jax.nn.softmax(scores, axis=-1)

    def _matmul(self, inputs: Array, kernel: Array) -> Array:
        return matmul(inputs, kernel, self.compute_dtype)
