"""Constraints on captions: small pure functions on log-probs that every search composes with.

Each takes the log-probs of the next token and the tokens chosen so far, and returns the log-probs
with forbidden tokens at -inf. None renormalises: a caption's score stays the model's.
"""

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from sparsecap_jax.array_modules import array_module
from sparsecap_jax.decoding.options import DecodeOptions
from sparsecap_jax.types import ArrayLike


class Prefix(NamedTuple):
    """Tokens chosen so far, the same number in every row.

    Attributes:
        tokens: int32 `[B, K, T]`, meaningful up to `length`; T is the longest caption possible.
        length: int32 scalar, number of tokens chosen, BOS not among them.
    """

    tokens: Int[ArrayLike, "B K T"]
    length: Int[ArrayLike, ""]

    @property
    def last(self) -> Int[ArrayLike, "B K"]:
        """The previous token; -1 where there is none."""
        xp = array_module(self.tokens)
        here = self.tokens[:, :, xp.maximum(self.length - 1, 0)]
        return xp.where(self.length > 0, here, -1)


Constraint = Callable[[ArrayLike, Prefix], ArrayLike]


def no_repeat(log_probs: Float[ArrayLike, "B K V"], prefix: Prefix) -> Float[ArrayLike, "B K V"]:
    """Forbid the previous token, as the reference's `decoding_constraint` does."""
    return _forbid(log_probs, _ids(log_probs) == prefix.last[..., None])


def no_repeat_ngram(
    log_probs: Float[ArrayLike, "B K V"], prefix: Prefix, *, size: int
) -> Float[ArrayLike, "B K V"]:
    """Forbid every token that would complete an n-gram of `size` tokens for the second time.

    Paulus et al., "A Deep Reinforced Model for Abstractive Summarization", 2017, section 2.5.
    """
    length = prefix.tokens.shape[-1]
    if size > length:
        return log_probs
    starts, xp = np.arange(length - size + 1), array_module(log_probs)
    ends = starts + size - 1
    seen = xp.asarray(ends < prefix.length)
    for offset in range(size - 1):
        # The n-gram being written starts size - 1 tokens before the next one.
        at = xp.maximum(prefix.length - (size - 1) + offset, 0)
        seen = seen & (prefix.tokens[:, :, starts + offset] == prefix.tokens[:, :, at][..., None])
    # In a prefix shorter than size - 1 no place qualifies: `ends < length` fails for all of them.
    seen = xp.broadcast_to(seen, (*prefix.tokens.shape[:2], starts.size))
    batch, rows = (xp.arange(n, dtype=np.int32) for n in prefix.tokens.shape[:2])
    worst = xp.where(seen, -xp.inf, xp.inf).astype(log_probs.dtype)
    places = batch[:, None, None], rows[None, :, None], prefix.tokens[:, :, ends]
    return xp.min_at(log_probs, places, worst)


def suppress(
    log_probs: Float[ArrayLike, "B K V"], prefix: Prefix, *, ids: Sequence[int]
) -> Float[ArrayLike, "B K V"]:
    """Forbid `ids` everywhere."""
    del prefix
    return _forbid(log_probs, _among(log_probs.shape[-1], tuple(ids)))


def no_bad_ending(
    log_probs: Float[ArrayLike, "B K V"], prefix: Prefix, *, ids: Sequence[int], eos_id: int
) -> Float[ArrayLike, "B K V"]:
    """Forbid EOS after any of `ids`, and `ids` at the last place, where captions are cut."""
    bad = _among(log_probs.shape[-1], tuple(ids))
    after_bad = (prefix.last[..., None] == np.asarray(ids, np.int32)).any(axis=-1)
    log_probs = _forbid(log_probs, after_bad[..., None] & (_ids(log_probs) == eos_id))
    return _forbid(log_probs, bad & (prefix.length == prefix.tokens.shape[-1] - 1))


def min_length(
    log_probs: Float[ArrayLike, "B K V"], prefix: Prefix, *, length: int, eos_id: int
) -> Float[ArrayLike, "B K V"]:
    """Forbid EOS until `length` tokens have been chosen."""
    return _forbid(log_probs, (_ids(log_probs) == eos_id) & (prefix.length < length))


def compose(
    options: DecodeOptions,
    forced: Int[ArrayLike, "B P"] | None = None,
    extra: Sequence[Constraint] = (),
) -> Constraint:
    """Return one constraint that applies all of `options`, `extra`, and `forced` where given.

    Where `forced` has a token, it wins over everything else: the other constraints do not see it.
    The options' `pad_id` leaves the choice free.
    """
    suppressed = (*options.suppress, *((options.unk_id,) if options.suppress_unk else ()))
    size, least, eos_id = options.no_repeat_ngram, options.min_length, options.eos_id
    bad = options.bad_endings
    rules: list[tuple[Any, Constraint]] = [
        (suppressed, partial(suppress, ids=suppressed)),
        (options.no_repeat, no_repeat),
        (size, partial(no_repeat_ngram, size=size)),
        (bad, partial(no_bad_ending, ids=bad, eos_id=eos_id)),
        (least, partial(min_length, length=least, eos_id=eos_id)),
    ]
    parts = [*options.constraints, *(rule for asked, rule in rules if asked), *extra]

    def apply(log_probs: Float[ArrayLike, "B K V"], prefix: Prefix) -> Float[ArrayLike, "B K V"]:
        constrained, xp = log_probs, array_module(log_probs)
        for part in parts:
            constrained = xp.asarray(part(constrained, prefix))
        if forced is None:
            return constrained
        padded = xp.pad(forced, ((0, 0), (0, 1)), constant_values=options.pad_id)
        token = padded[:, xp.minimum(prefix.length, forced.shape[1])][:, None, None]
        only = _forbid(log_probs, _ids(log_probs) != token)
        return xp.where(token == options.pad_id, constrained, only)

    return apply


@functools.lru_cache(maxsize=64)
def _among(size: int, ids: tuple[int, ...]) -> Bool[np.ndarray, " V"]:
    """Return which of `size` tokens are among `ids`; every step of every search asks for it."""
    return np.isin(np.arange(size), ids)


def _ids(log_probs: Float[ArrayLike, "B K V"]) -> Int[ArrayLike, " V"]:
    return array_module(log_probs).arange(log_probs.shape[-1], dtype=np.int32)


def _forbid(
    log_probs: Float[ArrayLike, "B K V"], where: Bool[ArrayLike, "..."]
) -> Float[ArrayLike, "B K V"]:
    return array_module(log_probs).where(where, np.float32(-np.inf), log_probs)
