"""Up-Down and Soft-Attention in NumPy; the mathematics is that of `sparsecap_jax.models`."""

import numpy as np
from jaxtyping import Float, Int

from sparsecap_jax.array_modules.numpy_arrays import log_softmax, sigmoid, softmax
from sparsecap_jax.formulas import lstm_state
from sparsecap_jax.model_fields import SoftAttentionFields, UpDownFields
from sparsecap_jax.sparse.layers import MASKED_SCORE, Weights, relu
from sparsecap_jax.types import Regions

Arrays = dict[str, np.ndarray]


class UpDown(UpDownFields):
    """The Up-Down captioner; fields and `weights`, see `models.up_down`."""

    def bind(self, weights: Weights) -> None:
        """Prepare the weights."""
        rnn, words, size = self.rnn_size, self.embed_size, self.attention_size
        self._embed = weights.take("embed/embedding", self.vocab_size, words)
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
            kernels[name] = np.concatenate([input_part, state_part])
        self._att_bias, self._lang_bias = (
            sum(weights.take(f"{name}/bias_{part}", 4 * rnn) for part in ("ih", "hh"))
            for name in kernels
        )
        # The attention LSTM's inputs are h_lang, fc, word and its own state; fc is fed once.
        fc = np.s_[rnn : 2 * rnn]
        self._fc_gates = weights.product(kernels["att_lstm"][fc])
        self._att_gates = weights.product(np.delete(kernels["att_lstm"], fc, axis=0))
        self._lang_gates = weights.product(kernels["lang_lstm"])
        widths = [rnn] * self.logit_layers + [self.vocab_size]
        self._logit = [
            weights.linear(f"logit_{i}", *widths[i : i + 2]) for i in range(self.logit_layers)
        ]

    def encode(self, regions: Regions) -> Arrays:
        """Embed the visual side."""
        mask = regions.mask.astype(np.float32)
        embedded = relu(self._region_embed(regions.features)) * mask[..., None]
        gates = self._fc_gates(relu(self._fc_embed(regions.fc))) + self._att_bias
        keys = self._ctx2att(embedded)
        return {"regions": embedded, "keys": keys, "mask": mask, "fc_gates": gates}

    def init_carry(self, context: Arrays, rows: int) -> Arrays:
        """Return zero states of both LSTMs."""
        shape = len(context["mask"]), rows, self.rnn_size
        return {
            name: np.zeros(shape, np.float32) for name in ("h_att", "c_att", "h_lang", "c_lang")
        }

    def step(
        self,
        carry: Arrays,
        tokens: Int[np.ndarray, "B K"],
        context: Arrays,
        attention: list[np.ndarray] | None = None,
    ) -> tuple[Arrays, Float[np.ndarray, "B K V"]]:
        """Advance by one token; the weights of the regions are appended to `attention`."""
        inputs = [carry["h_lang"], relu(self._embed[tokens]), carry["h_att"]]
        gates = self._att_gates(np.concatenate(inputs, axis=-1)) + context["fc_gates"][:, None]
        h_att, c_att = lstm_state(gates, carry["c_att"])
        hidden = np.tanh(context["keys"][:, None] + self._h2att(h_att)[:, :, None])
        weights = softmax(hidden @ self._alpha) * context["mask"][:, None]
        weights /= weights.sum(axis=-1, keepdims=True)
        if attention is not None:
            attention.append(weights)
        inputs = [weights @ context["regions"], h_att, carry["h_lang"]]
        gates = self._lang_gates(np.concatenate(inputs, axis=-1)) + self._lang_bias
        h_lang, c_lang = lstm_state(gates, carry["c_lang"])
        hidden = h_lang
        for layer in self._logit[:-1]:
            hidden = relu(layer(hidden))
        carry = {"h_att": h_att, "c_att": c_att, "h_lang": h_lang, "c_lang": c_lang}
        return carry, log_softmax(self._logit[-1](hidden))


class SoftAttention(SoftAttentionFields):
    """The Soft-Attention captioner; fields and `weights`, see `models.soft_attention`."""

    def bind(self, weights: Weights) -> None:
        """Prepare the weights."""
        rnn, words, size = self.rnn_size, self.embed_size, self.attention_size

        def product(name: str, inputs: int, outputs: int):
            return weights.product(weights.take(f"{name}/kernel", inputs, outputs))

        self._embed = weights.take("embed/embedding", self.vocab_size, words)
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
        self._bias = np.concatenate(biases)
        if self.cell == "lstm":
            self._gates = weights.product(np.concatenate([*inputs, *states]))
        else:
            self._inputs = weights.product(np.concatenate(inputs, axis=1))
            self._gates, self._candidate = map(weights.product, states)

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
        inputs = [self._embed[tokens], carry["attended"]]
        if self.cell == "lstm":
            gates = self._gates(np.concatenate([*inputs, carry["h"]], axis=-1)) + self._bias
            hidden, cell = lstm_state(gates, carry["c"])
            state = {"h": hidden, "c": cell}
        else:
            hidden = self._gru(np.concatenate(inputs, axis=-1), carry["h"])
            state = {"h": hidden}
        scores = np.tanh(context["keys"][:, None] + self._query(hidden)[:, :, None]) @ self._score
        weights = softmax(np.where(context["mask"][:, None], scores, MASKED_SCORE))
        if attention is not None:
            attention.append(weights)
        carry = {**state, "attended": weights @ context["values"]}
        return carry, log_softmax(self._logit(hidden))

    def _gru(self, inputs: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        shares = self._inputs(inputs) + self._bias
        gates, candidate = np.split(shares, [2 * self.rnn_size], axis=-1)
        reset, update = np.split(sigmoid(gates + self._gates(hidden)), 2, axis=-1)
        candidate = np.tanh(candidate + self._candidate(reset * hidden))
        return update * hidden + (np.float32(1.0) - update) * candidate
