"""Up-Down and Soft-Attention in NumPy; the mathematics is that of `sparsecap_jax.models`."""

import numpy as np
from jaxtyping import Float, Int

from sparsecap_jax.array_modules.numpy_arrays import log_softmax, sigmoid, softmax
from sparsecap_jax.model_fields import SoftAttentionFields, UpDownFields
from sparsecap_jax.sparse.layers import MASKED_SCORE, Weights, lstm_advance, lstm_ordered, relu
from sparsecap_jax.types import Regions

Arrays = dict[str, np.ndarray]


class UpDown(UpDownFields):
    """The Up-Down captioner; fields and `weights`, see `models.up_down`."""

    def bind(self, weights: Weights) -> None:
        """Prepare the weights."""
        rnn, words, size = self.rnn_size, self.embed_size, self.attention_size
        embedding = weights.take("embed/embedding", self.vocab_size, words)
        self._fc_embed = weights.linear("fc_embed", self.feature_size, rnn)
        self._region_embed = weights.linear("region_embed", self.feature_size, rnn)
        self._ctx2att = weights.linear("ctx2att", rnn, size)
        self._h2att = weights.linear("attention/h2att", rnn, size)
        self._alpha = weights.take("attention/alpha/kernel", size, 1)[:, 0]
        weights.take("attention/alpha/bias", 1)  # the softmax does not depend on it
        kernels = {}
        for name, inputs in (("att_lstm", 2 * rnn + words), ("lang_lstm", 2 * rnn)):
            input_part = weights.take(f"{name}/kernel_ih", inputs, 4 * rnn)
            state_part = weights.take(f"{name}/kernel_hh", rnn, 4 * rnn)
            kernels[name] = lstm_ordered(np.concatenate([input_part, state_part]))
        self._att_bias, self._lang_bias = (
            lstm_ordered(
                weights.take(f"{name}/bias_ih", 4 * rnn) + weights.take(f"{name}/bias_hh", 4 * rnn)
            )
            for name in kernels
        )
        # The attention LSTM's inputs are h_lang, fc, word and its own state; fc is fed once.
        h_lang, fc, word, h_att = np.split(kernels["att_lstm"], [rnn, 2 * rnn, 2 * rnn + words])
        self._fc_gates = weights.product(fc)
        self._word_gates = weights.words(np.maximum(embedding, np.float32(0.0)), word)
        self._att_gates = weights.product(np.concatenate([h_att, h_lang]))
        self._lang_gates = weights.product(kernels["lang_lstm"])
        widths = [rnn] * self.logit_layers + [self.vocab_size]
        self._logit = [
            weights.linear(f"logit_{i}", *widths[i : i + 2]) for i in range(self.logit_layers)
        ]

    def encode(self, regions: Regions) -> Arrays:
        """Embed the visual side."""
        mask = regions.mask.astype(np.float32)
        embedded = relu(self._region_embed(regions.features))
        embedded *= mask[..., None]
        gates = self._fc_gates(relu(self._fc_embed(regions.fc)), self._att_bias)
        keys = self._ctx2att(embedded)
        return {"regions": embedded, "keys": keys, "mask": mask, "fc_gates": gates}

    def init_carry(self, context: Arrays, rows: int) -> Arrays:
        """Return zero states of both LSTMs.

        `inputs [B, K, 3H]` are the language LSTM's: attended regions, `h_att` and `h_lang`.
        """
        shape = len(context["mask"]), rows, self.rnn_size
        inputs = np.zeros((*shape[:2], 3 * self.rnn_size), np.float32)
        return {"inputs": inputs, **{name: np.zeros(shape, np.float32) for name in ("att", "lang")}}

    def step(
        self,
        carry: Arrays,
        tokens: Int[np.ndarray, "B K"],
        context: Arrays,
        attention: list[np.ndarray] | None = None,
    ) -> tuple[Arrays, Float[np.ndarray, "B K V"]]:
        """Advance by one token; the weights of the regions are appended to `attention`."""
        rnn, old = self.rnn_size, carry["inputs"]
        gates = self._att_gates(old[..., rnn:], context["fc_gates"][:, None])
        self._word_gates(tokens, gates)
        h_att, att = lstm_advance(gates, carry["att"])
        weights = self._attend(h_att, context)
        if attention is not None:
            attention.append(weights)
        inputs = np.empty(old.shape, np.float32)
        np.matmul(weights, context["regions"], out=inputs[..., :rnn])
        inputs[..., rnn : 2 * rnn] = h_att
        inputs[..., 2 * rnn :] = old[..., 2 * rnn :]
        hidden, lang = lstm_advance(self._lang_gates(inputs, self._lang_bias), carry["lang"])
        inputs[..., 2 * rnn :] = hidden
        for layer in self._logit[:-1]:
            hidden = relu(layer(hidden))
        carry = {"inputs": inputs, "att": att, "lang": lang}
        return carry, log_softmax(self._logit[-1](hidden))

    def _attend(
        self, query: Float[np.ndarray, "B K H"], context: Arrays
    ) -> Float[np.ndarray, "B K R"]:
        """Return the weights of the regions; the inner sum of the softmax cancels out."""
        hidden = context["keys"][:, None] + self._h2att(query)[:, :, None]
        np.tanh(hidden, out=hidden)
        scores = (hidden.reshape(-1, hidden.shape[-1]) @ self._alpha).reshape(hidden.shape[:-1])
        scores -= np.maximum.reduce(scores, axis=-1, keepdims=True)
        weights = np.exp(scores, out=scores)
        weights *= context["mask"][:, None]
        weights /= np.add.reduce(weights, axis=-1, keepdims=True)
        return weights


class SoftAttention(SoftAttentionFields):
    """The Soft-Attention captioner; fields and `weights`, see `models.soft_attention`."""

    def bind(self, weights: Weights) -> None:
        """Prepare the weights."""
        rnn, words, size = self.rnn_size, self.embed_size, self.attention_size

        def product(name: str, inputs: int, outputs: int):
            return weights.product(weights.take(f"{name}/kernel", inputs, outputs))

        embedding = weights.take("embed/embedding", self.vocab_size, words)
        self._init_state = product("init_state", self.feature_size, rnn)
        self._keys = product("keys", self.feature_size, size)
        self._values = product("values", self.feature_size, size)
        self._query = product("query", rnn, size)
        self._score = weights.take("score/kernel", size, 1)[:, 0]
        self._logit = weights.linear("logit", rnn, self.vocab_size)
        parts = {"lstm": 4} if self.cell == "lstm" else {"gru_gates": 2, "gru_candidate": 1}
        inputs, states, biases = [], [], []
        for name, count in parts.items():
            width = count * rnn
            inputs.append(weights.take(f"{name}/kernel_ih", words + size, width))
            states.append(weights.take(f"{name}/kernel_hh", rnn, width))
            biases.append(weights.take(f"{name}/bias", width))
        word, attended = np.split(np.concatenate(inputs, axis=1), [words])
        self._bias = np.concatenate(biases)
        if self.cell == "lstm":
            word, self._bias = lstm_ordered(word), lstm_ordered(self._bias)
            self._gates = weights.product(lstm_ordered(np.concatenate([attended, *states])))
        else:
            self._inputs = weights.product(attended)
            self._gates, self._candidate = map(weights.product, states)
        self._words = weights.words(embedding, word)

    def encode(self, regions: Regions) -> Arrays:
        """Project the visual side."""
        keys, values = self._keys(regions.features), self._values(regions.features)
        hidden = self._init_state(regions.fc)
        return {"hidden": hidden, "keys": keys, "values": values, "mask": regions.mask}

    def init_carry(self, context: Arrays, rows: int) -> Arrays:
        """Return the state that the image gives, and attended values of 0."""
        batch = len(context["hidden"])
        state = np.broadcast_to(context["hidden"][:, None], (batch, rows, self.rnn_size))
        attended = np.zeros((batch, rows, self.attention_size), np.float32)
        cell = {"c": np.zeros(state.shape, np.float32)} if self.cell == "lstm" else {}
        return {"h": state, "attended": attended, **cell}

    def step(
        self,
        carry: Arrays,
        tokens: Int[np.ndarray, "B K"],
        context: Arrays,
        attention: list[np.ndarray] | None = None,
    ) -> tuple[Arrays, Float[np.ndarray, "B K V"]]:
        """Advance by one token; the weights of the regions are appended to `attention`."""
        if self.cell == "lstm":
            inputs = np.concatenate([carry["attended"], carry["h"]], axis=-1)
            gates = self._gates(inputs, self._bias)
            self._words(tokens, gates)
            hidden, cell = lstm_advance(gates, carry["c"])
            state = {"h": hidden, "c": cell}
        else:
            inputs = self._inputs(carry["attended"], self._bias)
            self._words(tokens, inputs)
            hidden = self._gru(inputs, carry["h"])
            state = {"h": hidden}
        attended = context["keys"][:, None] + self._query(hidden)[:, :, None]
        scores = np.tanh(attended, out=attended) @ self._score
        weights = softmax(np.where(context["mask"][:, None], scores, MASKED_SCORE))
        if attention is not None:
            attention.append(weights)
        carry = {**state, "attended": weights @ context["values"]}
        return carry, log_softmax(self._logit(hidden))

    def _gru(self, inputs: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        gates, candidate = np.split(inputs, [2 * self.rnn_size], axis=-1)
        reset, update = np.split(sigmoid(self._gates(hidden, gates)), 2, axis=-1)
        candidate = np.tanh(self._candidate(reset * hidden, candidate))
        return update * hidden + (np.float32(1.0) - update) * candidate
