"""Radix tokens: word ids written as digits of a chosen base (ACORT, arXiv:2202.05451).

Id 0 is PAD, 1 to base are the digits 0 to base - 1, base + 1 is BOS and base + 2 is EOS. Every
word takes the same number of digits; the last word slot stands for unknown words.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Annotated, Any

from sparsecap_jax.errors import ConfigError, DataError
from sparsecap_jax.files import read_settings
from sparsecap_jax.settings import Range
from sparsecap_jax.tokenizers.base import SPECIAL_IDS, Tokenizer, TokenizerConfig, _as_ids

# Names the base next to the model. The reference's folders lack it, and it may be left out.
_SETTINGS = "radix.json"


def decimal_to_base(number: int, base: int) -> list[int]:
    """Return the digits of a number, most significant first, each plus 1 (0 is PAD).

    Raises:
        ConfigError: `base` is below 2, or `number` is negative.
    """
    if base < 2 or number < 0:
        raise ConfigError(f"radix digits of {number} in base {base}: expected a base of 2 or more")
    digits = [number % base + 1]
    while number := number // base:
        digits.append(number % base + 1)
    return digits[::-1]


def base_to_decimal(digits: Sequence[int], base: int) -> int:
    """Return the number that digits (each plus 1) spell; a PAD among them counts as digit 0."""
    number = 0
    for digit in digits:
        number = number * base + max(digit - 1, 0)
    return number


def group_digits(ids: Sequence[int], size: int) -> list[tuple[int, ...]]:
    """Split ids into groups of `size`; the last one is filled up with digit 0 (id 1)."""
    filled = [*ids, *[1] * (-len(ids) % size)]
    return [tuple(filled[i : i + size]) for i in range(0, len(filled), size)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RadixConfig(TokenizerConfig):
    """Section `tokenizer` of a config with radix tokens.

    Attributes:
        radix_base: base in which word ids are written.
    """

    radix_base: Annotated[int, Range(2, 10**6)] = 768


class RadixTokenizer(Tokenizer):
    """Word tokenizer whose ids are written in base `radix_base`.

    A limit of ids becomes one of words, (max_length - 2) // tokens_per_word + 2 with BOS and EOS
    among them, as in the reference. A caption that loses its EOS may therefore have a few ids more
    than `max_length` (see `max_tokens`). 0 leaves next to nothing unless words have one digit.

    Attributes:
        radix_base: the base, 2 or more.
        tokens_per_word: digits of every word.
        words: ids of every word; the last one stands for unknown words.
    """

    name = "radix"
    model_type = "word"
    default_max_length = 30
    config = RadixConfig

    def __init__(self, model: bytes, radix_base: int = RadixConfig.radix_base):
        """Make a radix tokenizer of a serialized word model (768 is the papers' base)."""
        super().__init__(model)
        slots = self.vocab_size - 3  # all words, and one slot for the unknown
        width = len(decimal_to_base(slots, radix_base))
        self.radix_base, self.tokens_per_word = radix_base, width
        words = [decimal_to_base(slot, radix_base) for slot in range(slots)]
        self.words = [(1,) * (width - len(word)) + tuple(word) for word in words]
        self.pad_id, self.bos_id, self.eos_id = 0, radix_base + 1, radix_base + 2
        self.unk_ids = self.words[-1]
        self.vocab_size = radix_base + 3
        # By SentencePiece id; the special ones come first.
        self._ids = [(self.pad_id,), self.unk_ids, (self.bos_id,), (self.eos_id,), *self.words]

    @classmethod
    def load(cls, directory: str | os.PathLike, **options: Any) -> "RadixTokenizer":
        """Load a tokenizer folder; see `Tokenizer.load`.

        Raises:
            ConfigError: `radix_base` is neither given nor in the folder, or they differ.
        """
        path = cls._model_path(directory).parent / _SETTINGS
        base, stored = options.get("radix_base"), _stored_base(path)
        if base is None and stored is None and path.parent.is_dir():
            raise ConfigError(f"tokenizer.radix_base is missing, and {path} too; expected one")
        if None not in (base, stored) and base != stored:
            raise ConfigError(f"tokenizer.radix_base: found {base}, expected {stored} as in {path}")
        loaded: Any = super().load(directory, radix_base=base or stored or RadixConfig.radix_base)
        return loaded

    def _files(self) -> dict[str, bytes]:
        return {_SETTINGS: json.dumps({"radix_base": self.radix_base}).encode(), **super()._files()}

    def _limited(self, ids: list[int], max_length: int | None) -> list[int]:
        words = None if max_length is None else self._max_words(max_length)
        ids = super()._limited(ids, words)
        return [digit for i in ids for digit in self._ids[i]]

    def decode(self, ids: Any) -> str:
        """Return the text of token ids up to the first EOS.

        As in the reference, BOS is not skipped: strip it before. A last word that lacks digits is
        completed with digit 0; slots beyond the vocabulary count as unknown.
        """
        ids = _as_ids(ids)
        if self.eos_id in ids:
            ids = ids[: ids.index(self.eos_id)]
        groups = group_digits(ids, self.tokens_per_word)
        slots = [base_to_decimal(group, self.radix_base) for group in groups]
        return self._decode_pieces([slot + len(SPECIAL_IDS) for slot in slots])

    def max_tokens(self, max_length: int) -> int:
        """Return the most ids that `encode(..., max_length)` returns: BOS and all words full."""
        return 1 + (self._max_words(max_length) - 1) * self.tokens_per_word

    def _max_words(self, max_length: int) -> int:
        if max_length < 0:
            return max_length
        return (max_length - 2) // self.tokens_per_word + 2


def _stored_base(path: pathlib.Path) -> int | None:
    if not path.exists():
        return None
    base = read_settings(path).get("radix_base")
    if type(base) is not int or not 2 <= base <= 10**6:
        expected = "expected an integer of 2 or more, up to a million"
        raise DataError(f"{path}: radix_base: found {base!r:.80}, {expected}")
    return base
