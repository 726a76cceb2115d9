"""Teacher forcing of recurrent models: whole captions, packed words, or the model's own words."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sparsecap_jax.model_fields import RecurrentFields
from sparsecap_jax.models.interface import CaptionModel, scan_words
from sparsecap_jax.models.late_gradients import Kernels, multiply_by, unroll
from sparsecap_jax.models.packing import nan_if_lost, pack_rows
from sparsecap_jax.models.precision import matmul
from sparsecap_jax.types import ArrayLike, Regions

Context = dict[str, Array]
Carry = dict[str, Array]


class RecurrentModel(RecurrentFields, CaptionModel):
    """Base of models with a recurrent state.

    A subclass has the methods `encode` and `init_carry`, and four parts of a step, of which only
    `_recur` must run word by word:

        kernels = self._kernels()                                  # weights that the rest shares
        words = self._word_inputs(kernels, tokens, train)          # [...] -> [..., G]
        carry, hidden = self._recur(carry, words, multiply, kernels, context, train)
                                                                   # [B, K, G] -> [B, K, H]
        log_probs = self._log_probs(hidden, train)                 # [..., H] -> [..., V]

    `_groups` names the kernels that `_recur` multiplies by, through `multiply` alone; their
    gradients come after the loop (`late_gradients.unroll`).
    """

    samples_inputs: ClassVar[bool] = True

    def step(
        self, carry: Carry, tokens: Int[Array, "B K"], context: Context, *, train: bool = False
    ) -> tuple[Carry, Float[Array, "B K V"]]:
        """Advance by one token and return the log-probs of the next."""
        kernels: Any = self.get_variable("prepared", "kernels")
        if kernels is None:
            # XLA does not hoist bare slices out of a decoding loop but copies them at every step;
            # behind a barrier it does.
            kernels = jax.lax.optimization_barrier(self._kernels())
        return self._advance(carry, tokens, context, kernels, train)

    def prepare(self) -> None:
        """Store the kernels of a step, split by input, as `CaptionModel.prepare` says."""
        self.put_variable("prepared", "kernels", self._kernels())

    def __call__(
        self,
        regions: Regions,
        tokens: Int[ArrayLike, "B K T"],
        *,
        train: bool = False,
        sample_prob: Float[ArrayLike, ""] | None = None,
    ) -> Float[Array, "B K T V"]:
        """Teacher forcing: log-probs of the token that follows each of `tokens [B, K, T]`.

        Only what depends on the recurrent state runs inside the scan; the logits are computed after
        it in one matmul. With scheduled sampling, everything runs inside.

        `sample_prob` is the probability of scheduled sampling, see `_sampled`; it may be traced.
        """
        tokens, context = jnp.asarray(tokens), self.encode(regions, train=train)
        kernels = self._kernels()
        if sample_prob is not None:
            return self._sampled(context, tokens, kernels, sample_prob, train)
        words = self._word_inputs(kernels, tokens, train)
        return self._log_probs(self._unroll(context, words, kernels, None, train), train)

    def decode_packed(
        self,
        context: Context,
        tokens: Int[ArrayLike, "B K T"],
        token_mask: Bool[ArrayLike, "B K T"],
        size: int,
        *,
        train: bool = False,
    ) -> tuple[Float[Array, "N V"], Int[Array, " N"]]:
        """As `CaptionModel.decode_packed`; padding costs work in the recurrence alone."""
        tokens, mask = jnp.asarray(tokens), jnp.asarray(token_mask)
        kernels, rows = self._kernels(), pack_rows(mask, size)
        words = self._word_inputs(kernels, rows.take_tokens(tokens, 0), train)
        words = rows.spread(words, 1).reshape(*tokens.shape, -1)
        hidden = rows.gather(self._unroll(context, words, kernels, rows.places, train))
        return self._log_probs(nan_if_lost(hidden, mask), train), rows.flat_places()

    def _unroll(
        self,
        context: Context,
        words: Float[Array, "B K T G"],
        kernels: Kernels,
        places: Int[Array, " N"] | None,
        train: bool,
    ) -> Float[Array, "B K T H"]:
        """Return the outputs of `_recur` for all words; those not at `places` are not used."""

        def recur(module, carry, words, multiply, kernels, context):
            return module._recur(carry, words, multiply, kernels, context, train)

        inputs = self.init_carry(context, words.shape[1]), words, kernels, context
        options: Any = {"places": places, "compute_dtype": self.compute_dtype, "remat": self.remat}
        return unroll(self, recur, self._groups(), *inputs, **options)

    def _sampled(
        self,
        context: Context,
        tokens: Int[Array, "B K T"],
        kernels: Kernels,
        probability: Float[ArrayLike, ""],
        train: bool,
    ) -> Float[Array, "B K T V"]:
        """Feed captions, each token but the first replaced with `probability` by one of the model.

        The replacement is drawn from the model's distribution at the place before (rng stream
        "sampling"); no gradient flows through the draw. Inputs are sown as "inputs" `[B, K, T]`.

        Bengio et al., "Scheduled Sampling for Sequence Prediction with Recurrent Neural Networks",
        NIPS 2015, as in the reference (`models/att_model.py`, `ss_prob`).
        """

        def place(module, carry, caption, context, kernels):
            state, drawn = carry
            replace = jax.random.bernoulli(module.make_rng("sampling"), probability, caption.shape)
            inputs = jnp.where(replace, drawn, caption)
            module.sow("intermediates", "inputs", inputs)
            state, log_probs = module._advance(state, inputs, context, kernels, train)
            drawn = jax.random.categorical(module.make_rng("sampling"), log_probs)
            return (state, drawn.astype(caption.dtype)), log_probs

        # Any draw for the first place gives the caption's own first token.
        carry = self.init_carry(context, tokens.shape[1]), tokens[:, :, 0]
        return scan_words(place, 2)(self, carry, tokens, context, kernels)[1]

    def _advance(self, carry, tokens, context, kernels, train) -> tuple[Carry, Array]:
        words = self._word_inputs(kernels, tokens, train)
        multiply = multiply_by(kernels, self.compute_dtype)
        carry, hidden = self._recur(carry, words, multiply, kernels, context, train)
        return carry, self._log_probs(hidden, train)

    def _matmul(self, inputs: Array, kernel: Array) -> Array:
        return matmul(inputs, kernel, self.compute_dtype)
