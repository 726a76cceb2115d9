"""Tokenizers on SentencePiece: word, unigram, byte-pair and character."""

import contextlib
import dataclasses
import logging
import os
import pathlib
import threading
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
import sentencepiece

from sparsecap_jax.errors import ConfigError, DataError
from sparsecap_jax.files import new_folder, read_bytes, write_atomically
from sparsecap_jax.settings import Range
from sparsecap_jax.text import compose_am
from sparsecap_jax.tokenizers.training import (
    BOS_ID,
    EOS_ID,
    PAD_ID,
    SPECIAL_IDS,
    UNK_ID,
    train_sentencepiece,
)

logger = logging.getLogger(__name__)

MAX_MODEL_BYTES = 2**28  # a million pieces take 0.02 GB

# SentencePiece draws from one generator per process.
_SAMPLING = threading.Lock()
_BLANK = "\u2581"


class Piece(NamedTuple):
    """A piece of text: `(" " + text)[start:end]`, its blanks shown as U+2581 in `value`."""

    value: str
    start: int
    end: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Section `tokenizer` of a config.

    Attributes:
        vocab_size: at most so many SentencePiece ids, the special ones included.
    """

    vocab_size: Annotated[int, Range(5, 10**6)] = 10000


class Tokenizer:
    """Base of all tokenizers.

    Attributes:
        name: its key in `TOKENIZERS`.
        config: its section of a config; `__init__` takes the fields that it adds.
        model_type: SentencePiece's model type, and the stem of its files.
        default_max_length: the reference's limit for this kind of tokens.
        samples: whether a text has several segmentations to draw from.
        pad_id, bos_id, eos_id: special ids.
        unk_ids: ids that stand for an unknown word, `(1,)` except for radix tokens.
        vocab_size: number of ids that a model must know, special ones included.
    """

    name: ClassVar[str]
    model_type: ClassVar[str]
    default_max_length: ClassVar[int] = 16
    config: ClassVar[type[TokenizerConfig]] = TokenizerConfig
    samples: ClassVar[bool] = False

    def __init__(self, model: bytes):
        """Make a tokenizer of a serialized SentencePiece model.

        Raises:
            DataError: the model is corrupt, or has other special ids than the reference's.
        """
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
            self.all_pieces()
        except (RuntimeError, UnicodeDecodeError) as error:
            raise DataError("corrupt SentencePiece model") from error
        ids = {name: getattr(self._processor, name)() for name in SPECIAL_IDS}
        if ids != SPECIAL_IDS:
            raise DataError(f"special ids of the model: found {ids}, expected {SPECIAL_IDS}")
        self._model = model
        self.pad_id, self.bos_id, self.eos_id = PAD_ID, BOS_ID, EOS_ID
        self.unk_ids: tuple[int, ...] = (UNK_ID,)
        self.vocab_size: int = len(self._processor)

    @property
    def unk_id(self) -> int | None:
        """Id of an unknown word; None where it takes several ids."""
        return self.unk_ids[0] if len(self.unk_ids) == 1 else None

    def same_ids(self, other: "Tokenizer") -> bool:
        """Return whether every id stands for the same piece of text in `other`."""
        kinds = [(one.name, one.vocab_size, one.all_pieces()) for one in (self, other)]
        return kinds[0] == kinds[1]

    def all_pieces(self) -> list[str]:
        """Return the pieces of all SentencePiece ids, in order."""
        return self._processor.id_to_piece(list(range(len(self._processor))))

    @classmethod
    def train(
        cls, captions: Iterable[str], directory: str | os.PathLike, vocab_size: int, **options: Any
    ) -> "Tokenizer":
        """Train on captions and write the tokenizer's folder; `options` are fields of `config`.

        The vocabulary is smaller than requested when the captions hold less; that is logged.

        Raises:
            ConfigError: a bad option, or a vocabulary that cannot be made.
            DataError: there are no captions, or some are not text.
        """
        tokenizer = cls(train_sentencepiece(cls.model_type, captions, vocab_size), **options)
        if (size := len(tokenizer._processor)) < vocab_size:
            message = "%s tokenizer: %d of the %d ids asked for: the captions hold no more"
            logger.info(message, cls.name, size, vocab_size)
        tokenizer.save(directory)
        return tokenizer

    @classmethod
    def load(cls, directory: str | os.PathLike, **options: Any) -> "Tokenizer":
        """Load a tokenizer folder, ours or the reference's, or that of a run directory.

        `options` are further fields of `config`; DataError where the model is missing or corrupt.
        """
        path = cls._model_path(directory)
        model = read_bytes(path, "a SentencePiece model", max_bytes=MAX_MODEL_BYTES)
        try:
            return cls(model, **options)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error

    @classmethod
    def _model_path(cls, directory: str | os.PathLike) -> pathlib.Path:
        directory, name = pathlib.Path(directory), f"{cls.model_type}.model"
        within = directory / "tokenizer" / name
        return within if within.exists() and not (directory / name).exists() else directory / name

    def save(self, directory: str | os.PathLike) -> None:
        """Write the tokenizer's folder, as the reference names its files.

        A new folder appears complete or not at all.
        """
        directory = pathlib.Path(directory)
        exists = directory.exists()
        with contextlib.nullcontext(directory) if exists else new_folder(directory) as folder:
            for name, data in self._files().items():
                with write_atomically(folder / name, "wb") as file:
                    file.write(data)

    def _files(self) -> dict[str, bytes]:
        scores = map(self._processor.get_score, range(len(self._processor)))
        lines = zip(self.all_pieces(), scores, strict=True)
        vocabulary = "".join(f"{piece}\t{score:g}\n" for piece, score in lines).encode("utf-8")
        # The model comes last: a folder that has it has the rest.
        return {f"{self.model_type}.vocab": vocabulary, f"{self.model_type}.model": self._model}

    def encode(
        self,
        text: str,
        max_length: int | None = None,
        *,
        add_special: bool = True,
        sample: bool = False,
        alpha: float = 0.1,
        nbest_size: int = -1,
        seed: int | None = None,
    ) -> list[int]:
        """Return the token ids of a text.

        Args:
            text: a caption.
            max_length: ids to keep, BOS and EOS counted: a longer caption loses its end and EOS,
                as in the reference. None or 0: no limit (see `RadixTokenizer` for its limits).
            add_special: whether to put BOS and EOS around.
            sample: draw one of the segmentations (unigram, bpe) instead of taking the best.
            alpha: smoothing of the unigram distribution, or dropout rate of merges (bpe).
            nbest_size: number of best segmentations to draw from, -1 for all (unigram).
            seed: makes the draw repeatable.

        Returns:
            The ids; consecutive unknown words become `unk_ids` once.

        Raises:
            ConfigError: a negative limit, or sampling where there is one segmentation only.
        """
        options: dict[str, Any] = {"add_bos": add_special, "add_eos": add_special}
        if sample:
            if not self.samples:
                raise ConfigError(f"tokenizer {self.name!r} has one segmentation; cannot sample")
            options |= {"enable_sampling": True, "alpha": alpha, "nbest_size": nbest_size}
        seeded = sample and seed is not None
        with _SAMPLING if seeded else contextlib.nullcontext():
            if sample and seed is not None:
                sentencepiece.set_random_generator_seed(seed)
            return self._limited(self._processor.encode(text, **options), max_length)

    def encode_tokens(
        self, tokens: Sequence[str], max_length: int | None = None, *, add_special: bool = True
    ) -> list[int]:
        """Return the token ids of a caption that is split into words already.

        Unlike in `encode`, each unknown word keeps a place of its own.
        """
        ids = [i for word in tokens for i in self._processor.encode(word)]
        return self._limited([BOS_ID, *ids, EOS_ID] if add_special else ids, max_length)

    def _limited(self, ids: list[int], max_length: int | None) -> list[int]:
        """Cut the model's ids to a limit, and turn them into the tokenizer's."""
        if max_length is not None and max_length < 0:
            raise ConfigError(f"max_length: found {max_length}, expected 0 or more")
        return ids[:max_length] if max_length else ids

    def decode(self, ids: Any) -> str:
        """Return the text of token ids: integers, a list or an array `[T]` (or a single one).

        PAD, BOS and EOS are skipped and do not end the text (radix tokens: EOS does); ids beyond
        the vocabulary count as unknown. Both as in the reference.

        Raises:
            DataError: `ids` has two dimensions or more, fractions or negative numbers.
        """
        return self._decode_pieces(_as_ids(ids))

    def _decode_pieces(self, ids: Sequence[int]) -> str:
        size = len(self._processor)
        text = self._processor.decode([i if i < size else UNK_ID for i in ids])
        return compose_am(text.replace("<unk>", " <unk>").removeprefix(" "))

    def word_log_prob(self, word: str) -> float:
        """Return the natural log of a word's share of the training captions' words.

        It is the sum of the scores of its pieces in the SentencePiece model, which are log-probs
        (of subwords, as if these were independent); 0 for an unknown word.
        """
        return sum(map(self._processor.get_score, self._processor.encode(word)))

    def surfaces(self) -> list[str]:
        """Return what each id of the SentencePiece model adds to a text, blanks as U+2581.

        The text of ids is their surfaces, one after another, less blanks at its start.
        """
        surfaces = self.all_pieces()
        for number in (PAD_ID, BOS_ID, EOS_ID):
            surfaces[number] = ""
        surfaces[UNK_ID] = f"{_BLANK}<unk>"
        return surfaces

    def pieces(self, text: str) -> list[Piece]:
        """Return the pieces that `encode` looks up, with their places in `" " + text`.

        Text beyond ASCII is normalised first, as by `encode`; the places are those in the result.
        """
        if not text.isascii():  # pieces are those of the normalised text
            text = self._processor.normalize(text).replace(_BLANK, " ").removeprefix(" ")
        pieces, end, padded = [], 0, f" {text}"
        for piece in self._processor.encode(text, out_type=str):
            surface = piece.replace(_BLANK, " ")
            start = padded.find(surface, end)
            end = start + len(surface)
            pieces.append(Piece(piece, start, end))
        return pieces

    def max_tokens(self, max_length: int) -> int:
        """Return the most ids that `encode(..., max_length)` returns."""
        return max_length


class WordTokenizer(Tokenizer):
    """One id per word, the most frequent ones."""

    name = model_type = "word"


class UnigramTokenizer(Tokenizer):
    """Subwords of a unigram language model (Kudo 2018, arXiv:1804.10959)."""

    name = model_type = "unigram"
    samples = True


class BpeTokenizer(Tokenizer):
    """Byte-pair encoding; sampling drops merges (Provilkov et al. 2020, arXiv:1910.13267)."""

    name = model_type = "bpe"
    samples = True

    def word_log_prob(self, word: str) -> float:
        """Return -1 for every word: the scores of this model are the order of its merges."""
        return -1.0


class CharTokenizer(Tokenizer):
    """One id per character; the reference calls it "character"."""

    name = model_type = "char"
    default_max_length = 60


def _as_ids(ids: Any) -> list[int]:
    array = np.atleast_1d(np.asarray(ids))
    if array.size == 0:
        return []
    if array.ndim > 1 or not np.issubdtype(array.dtype, np.integer) or array.min() < 0:
        kind = f"{array.dtype} of shape {list(array.shape)}, smallest {array.min()}"
        raise DataError(f"ids to decode: found {kind}; expected one row of integers from 0 on")
    return array.tolist()
