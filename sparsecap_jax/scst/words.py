"""Words of captions as numbers, on the host and on the device.

A scorer's vocabulary has the tokenizer's words and those of the references and of the document
frequencies: a reference's word that the tokenizer does not know then never equals a sampled
unknown. Word tokens are looked up; radix tokens are combined to words first. Subwords have no such
table: their captions are decoded and scored on the host.
"""

import collections
import itertools
from collections.abc import Iterable, Sequence
from typing import no_type_check

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Int

from sparsecap_jax.errors import DataError
from sparsecap_jax.tokenizers import RadixTokenizer, Tokenizer
from sparsecap_jax.types import ArrayLike

END = -1  # follows the last word of a caption


class Vocabulary(dict[str, int]):
    """Numbers of words, in the order in which they came; `words` are the first ones."""

    def __init__(self, words: Iterable[str] = ()):
        super().__init__()
        for word in words:
            self.add(word)

    def add(self, word: str) -> int:
        """Return the number of `word`, a new one where it has none."""
        return self.setdefault(word, len(self))

    def encode(
        self, captions: Sequence[str]
    ) -> tuple[Int[np.ndarray, "N T"], Int[np.ndarray, " N"]]:
        """Return the numbers of the words of captions, separated by blanks.

        Unknown words get numbers beyond the vocabulary, equal ones the same within this call.

        Returns:
            int32 words, `END` after the last, at least one column; and the lengths.
        """
        unknown: dict[str, int] = collections.defaultdict(itertools.count(len(self)).__next__)
        rows = [
            [self[word] if word in self else unknown[word] for word in text.split()]
            for text in captions
        ]
        lengths = np.array([len(row) for row in rows], np.int32)
        ids = np.full((len(rows), max(1, lengths.max(initial=0))), END, np.int32)
        ids[np.arange(ids.shape[1]) < lengths[:, None]] = [*itertools.chain(*rows)]
        return ids, lengths


class References:
    """References of the N images of a split, numbered once and kept at their true lengths.

    Args:
        captions: of each image at least one, words separated by blanks.
        vocabulary: takes up their words.

    Attributes:
        first: int64 `[N + 1]`; those of image i are rows `first[i]:first[i + 1]`.

    Raises:
        DataError: an image without references.
    """

    def __init__(self, captions: Iterable[Sequence[str]], vocabulary: Vocabulary):
        words: list[int] = []
        ends, first = [0], [0]
        for number, texts in enumerate(captions):
            if not texts:
                raise DataError(f"image {number} has no references to reward captions with")
            for text in texts:
                words += map(vocabulary.add, text.split())
                ends.append(len(words))
            first.append(first[-1] + len(texts))
        words.append(END)
        self._words = np.array(words, np.int32)
        self._ends, self.first = np.array(ends, np.int64), np.array(first, np.int64)
        self._most = int(np.diff(self.first).max(initial=1))
        self._longest = int(np.diff(self._ends).max(initial=1))

    def __len__(self) -> int:
        return len(self.first) - 1

    def rows(self, images: Int[np.ndarray, "*B"]) -> Int[np.ndarray, "*B R"]:
        """Return rows of the references of images; -1 for missing ones and those of image -1."""
        rows = self.first[images][..., None] + np.arange(self._most)
        present = (images[..., None] >= 0) & (rows < self.first[images + 1][..., None])
        return np.where(present, rows, -1)

    def gather(
        self, images: Int[np.ndarray, "*B"]
    ) -> tuple[Int[np.ndarray, "*B R L"], Int[np.ndarray, "*B R"]]:
        """Return words and lengths of the references of images, in one shape for all batches.

        Image -1 only fills a batch up. Lengths are -1 where an image has fewer than R references.
        """
        return self.take(self.rows(images))

    def take(
        self, rows: Int[np.ndarray, "*B"]
    ) -> tuple[Int[np.ndarray, "*B L"], Int[np.ndarray, "*B"]]:
        """Return int32 words, `END` after the last, and lengths of rows; -1 for row -1."""
        lengths = np.where(rows >= 0, self._ends[rows + 1] - self._ends[rows], -1)
        places = np.arange(self._longest)
        at = np.where(places < lengths[..., None], self._ends[rows][..., None] + places, -1)
        return self._words[at], lengths.astype(np.int32)


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

    words: Int[ArrayLike, " M"]
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
    texts, digits, base = [], 1, 0
    if isinstance(tokenizer, RadixTokenizer):
        texts = [tokenizer.decode(word) for word in tokenizer.words]
        digits, base = tokenizer.tokens_per_word, tokenizer.radix_base
    else:
        # A subword glues to the word before it: decoded behind a word it does not add one.
        first = next(i for i in range(tokenizer.vocab_size) if tokenizer.decode([i]).strip())
        before = tokenizer.decode([first])
        for i in range(tokenizer.vocab_size):
            text = tokenizer.decode([first, i])
            if text != before and not text.startswith(f"{before} "):
                return None
            texts.append(text.removeprefix(before))
    if any(len(text.split()) > 1 for text in texts):
        return None
    words = [vocabulary.add(text.strip()) if text.strip() else END for text in texts]
    return WordTable(np.array(words, np.int32), digits, base, tokenizer.eos_id)
