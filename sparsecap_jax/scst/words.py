"""Words of sampled tokens, on the device: the numbers that the scorers compare.

Word tokens are looked up; radix tokens are combined to words first. Subwords have no such table:
their captions are decoded and scored on the host.
"""

from typing import no_type_check

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Int

from sparsecap_jax.scst.vocabulary import END, Vocabulary
from sparsecap_jax.tokenizers import RadixTokenizer, Tokenizer


@no_type_check
@struct.dataclass
class WordTable:
    """Words of tokens, or of groups of radix tokens.

    Attributes:
        words: int32 `[M]`, numbers of the scorer's vocabulary; -1 for tokens that add no text.
            Tokens beyond stand for the unknown word, as the last entry does.
        digits: tokens of a word.
        base: of radix tokens, 0 for others.
        eos_id: ends a caption of radix tokens.
    """

    words: Int[Array, " M"]
    digits: int = struct.field(pytree_node=False)
    base: int = struct.field(pytree_node=False)
    eos_id: int = struct.field(pytree_node=False)

    def __call__(
        self, tokens: Int[Array, "*N T"], lengths: Int[Array, "*N"]
    ) -> tuple[Int[Array, "*N W"], Int[Array, "*N"]]:
        """Return the words of captions, `END` after the last, and their number.

        They are those of the tokenizer's `decode`. Captions have no BOS; `lengths` include EOS.
        """
        inside = jnp.arange(tokens.shape[-1], dtype=jnp.int32) < lengths[..., None]
        if self.base:
            tokens, inside = self._slots(tokens, inside)
        words = jnp.take(self.words, tokens, mode="clip")
        kept = inside & (words >= 0)
        order = jnp.argsort(~kept, axis=-1, stable=True)
        words = jnp.take_along_axis(jnp.where(kept, words, END), order, axis=-1)
        return words, jnp.sum(kept, axis=-1, dtype=jnp.int32)

    def _slots(self, tokens, inside):
        """Numbers of words out of their digits; a last word that lacks some is filled with 0."""
        inside = inside & (tokens != self.eos_id)
        short = -tokens.shape[-1] % self.digits
        pad = [(0, 0)] * (tokens.ndim - 1) + [(0, short)]
        digits = jnp.where(inside, jnp.maximum(tokens - 1, 0), 0)
        digits = jnp.pad(digits, pad).reshape(*tokens.shape[:-1], -1, self.digits)
        places = jnp.asarray([self.base**i for i in reversed(range(self.digits))], jnp.int32)
        begun = jnp.pad(inside, pad)[..., :: self.digits]
        return jnp.sum(digits * places, axis=-1), begun


def word_table(tokenizer: Tokenizer, vocabulary: Vocabulary) -> WordTable | None:
    """Build the table of a tokenizer; its words join `vocabulary`. None for subword tokenizers."""
    if isinstance(tokenizer, RadixTokenizer):
        texts = [tokenizer.decode(word) for word in tokenizer.words]
        digits, base = tokenizer.tokens_per_word, tokenizer.radix_base
    else:
        # A subword glues to the word before it: decoded behind a word it does not add one.
        first = next(i for i in range(tokenizer.vocab_size) if tokenizer.decode([i]).strip())
        before = tokenizer.decode([first])
        texts = []
        for i in range(tokenizer.vocab_size):
            text = tokenizer.decode([first, i])
            if text != before and not text.startswith(f"{before} "):
                return None
            texts.append(text.removeprefix(before))
        digits, base = 1, 0
    if any(len(text.split()) > 1 for text in texts):
        return None
    words = [vocabulary.add(text.strip()) if text.strip() else END for text in texts]
    return WordTable(np.array(words, np.int32), digits, base, tokenizer.eos_id)
