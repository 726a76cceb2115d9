"""Captions as token ids: encoded once, then chosen and padded by integer indexing."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int

from sparsecap_jax.data.records import Record


@runtime_checkable
class Tokenizer(Protocol):
    """Tokenizer as the pipeline uses it."""

    pad_id: int

    def encode(self, text: str, max_length: int) -> list[int]:
        """Return ids from BOS to EOS, cut (without EOS) to `max_length`."""


@dataclasses.dataclass(frozen=True)
class EncodedCaptions:
    """All captions of N records, C in all; those of image i are rows `first[i]:first[i + 1]`.

    Attributes:
        tokens: int32 `[C, T]`, PAD after the end.
        lengths: int32 `[C]`, tokens of each caption, BOS and EOS included.
        first: int64 `[N + 1]`.
        pad_id: the PAD token.
    """

    tokens: Int[np.ndarray, "C T"]
    lengths: Int[np.ndarray, " C"]
    first: Int[np.ndarray, " N_plus_1"]
    pad_id: int

    def shuffle(self, rng: np.random.Generator) -> Int[np.ndarray, " C"]:
        """Return caption rows such that those of one image are shuffled among themselves."""
        image = np.repeat(np.arange(len(self.first) - 1), np.diff(self.first))
        return np.lexsort((rng.random(len(self.lengths)), image))

    def choose(
        self, images: Int[np.ndarray, " B"], order: Int[np.ndarray, " C"], seq_per_img: int
    ) -> tuple[Int[np.ndarray, "B S"], Bool[np.ndarray, "B S"]]:
        """Choose `seq_per_img` captions per image, the first ones in `order`.

        Args:
            images: image numbers, -1 for padding rows.
            order: caption rows grouped by image: `shuffle(rng)`, or `arange(C)` for file order.
            seq_per_img: captions per image S.

        Returns:
            Caption rows, and which of them count: an image with fewer than S captions repeats
            them, and the repeats do not count. Rows of images without captions are 0 and do not
            count.
        """
        slots = np.arange(seq_per_img)
        counts = np.where(images < 0, 0, self.first[images + 1] - self.first[images])[:, None]
        places = self.first[images][:, None] + slots % np.maximum(counts, 1)
        rows = order[np.where(counts > 0, places, 0)] if len(order) else np.zeros_like(places)
        return np.where(counts > 0, rows, 0), slots < counts

    def gather(
        self, rows: Int[np.ndarray, "B S"], counting: Bool[np.ndarray, "B S"], length: int
    ) -> tuple[Int[np.ndarray, "B S L"], Bool[np.ndarray, "B S L"]]:
        """Return int32 tokens of caption `rows`, first `length` columns, and their token mask.

        Repeats keep their tokens (a row of PAD alone would leave attention without keys) under a
        mask that is all False; images without any caption get PAD.
        """
        if not len(self.tokens):
            tokens = np.full((*rows.shape, length), self.pad_id, np.int32)
            return tokens, np.zeros(tokens.shape, np.bool_)
        tokens = self.tokens[rows, :length]
        tokens[~counting.any(axis=1)] = self.pad_id
        real = np.arange(length) < self.lengths[rows][..., None]
        return tokens, real & counting[..., None]


def encode_captions(
    records: Sequence[Record], tokenizer: Tokenizer, max_seq_length: int
) -> EncodedCaptions:
    """Encode every caption of `records` once, cut to `max_seq_length` (BOS and EOS counted)."""
    counts = [len(record.captions) for record in records]
    first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
    # Radix tokens may exceed the limit by a part of a word, as in the reference.
    width = getattr(tokenizer, "max_tokens", lambda limit: limit)(max_seq_length)
    tokens = np.full((int(first[-1]), width), tokenizer.pad_id, np.int32)
    lengths = np.zeros(int(first[-1]), np.int32)
    captions = (caption for record in records for caption in record.captions)
    for row, caption in enumerate(captions):
        ids = tokenizer.encode(caption, max_length=max_seq_length)
        tokens[row, : len(ids)] = ids
        lengths[row] = len(ids)
    return EncodedCaptions(tokens, lengths, first, tokenizer.pad_id)
