"""Greedy search and random sampling, in which the rows of an image are independent."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from sparsecap_jax.array_modules import array_module
from sparsecap_jax.decoding import topk
from sparsecap_jax.decoding.constraints import Prefix
from sparsecap_jax.decoding.stepper import Decoded, Search, reorder, spread
from sparsecap_jax.types import ArrayLike, PyTree

# Samples are searched for in stages of ever fewer rows: of all, down to these shares of them.
_STAGES = (0.75, 0.5, 0.25)
_MANY = 10  # Fewer rows than this end too unevenly to be worth a stage's compilation.


class _Rows(NamedTuple):
    """State of the search; `row` numbers the rows of an image."""

    position: Int[ArrayLike, ""]
    row: Int[ArrayLike, "B K"]
    carry: PyTree
    tokens: Int[ArrayLike, "B K T"]
    log_probs: Float[ArrayLike, "B K T"]
    finished: Bool[ArrayLike, "B K"]


def sequential_search(search: Search) -> Decoded:
    """Choose token after token, the best or a random one, until all captions have ended.

    Captions are returned in the order of their rows; scores are sums of log-probs.
    """
    options, xp = search.options, search.xp
    carry, first = search.begin()
    batch, rows, length = first.shape[0], options.rows, options.max_length

    def choose(state: _Rows, log_probs: Float[ArrayLike, "B K V"]) -> _Rows:
        log_probs = search.constrain(log_probs, Prefix(state.tokens, state.position))
        chosen = _pick(log_probs, state, search)
        gained = xp.take_along_axis(log_probs, chosen[..., None], axis=2)[..., 0]
        gained = xp.where(state.finished, 0.0, gained)
        chosen = xp.where(state.finished, np.int32(options.pad_id), chosen)
        place = np.s_[:, :, state.position]
        return state._replace(
            position=state.position + 1,
            tokens=xp.set_at(state.tokens, place, chosen),
            log_probs=xp.set_at(state.log_probs, place, gained),
            finished=state.finished | (chosen == options.eos_id),
        )

    def body(state: _Rows) -> _Rows:
        last = state.tokens[:, :, state.position - 1]
        carry, log_probs = search.step(state.carry, last, state.position)
        return choose(state._replace(carry=carry), log_probs)

    state = _Rows(
        position=xp.int32(0),
        row=xp.broadcast_to(xp.arange(rows, dtype=np.int32), (batch, rows)),
        carry=spread(xp, carry, rows),
        tokens=xp.full((batch, rows, length), options.pad_id, np.int32),
        log_probs=xp.zeros((batch, rows, length), np.float32),
        finished=xp.zeros((batch, rows), bool),
    )
    # Numbers of rows per image to which the search may shrink. Dropout and Gumbel noise are drawn
    # for all rows in one array: such a search does not shrink, so that its draws do not depend on
    # which captions have ended.
    sizes = []
    if options.method == "sample" and rows >= _MANY and search.dropout_rng is None:
        sizes = sorted({math.ceil(share * rows) for share in _STAGES}, reverse=True)
    tokens, log_probs = _in_stages(body, choose(state, spread(xp, first, rows)), sizes)
    before_eos = xp.sum(xp.cumsum(tokens == options.eos_id, axis=-1) == 0, axis=-1)
    lengths = xp.minimum(before_eos + 1, length).astype(np.int32)
    return Decoded(tokens, log_probs, xp.sum(log_probs, axis=-1), lengths)


def _in_stages(
    body: Callable[[_Rows], _Rows], state: _Rows, sizes: list[int]
) -> tuple[Int[ArrayLike, "B K T"], Float[ArrayLike, "B K T"]]:
    """Repeat `body` until all captions have ended, on fewer rows where enough of them have."""
    xp, (size, *smaller) = array_module(state.tokens), sizes or [0]

    def going(state: _Rows) -> Bool[ArrayLike, ""]:
        most = (~state.finished).sum(axis=-1).max()
        return (state.position < state.tokens.shape[-1]) & (most > size)

    state = xp.while_loop(going, body, state)
    if not size:
        return state.tokens, state.log_probs
    kept = xp.argsort(state.finished, axis=-1, stable=True)[:, :size]  # Unfinished rows come first.
    rows = state._asdict()
    fewer = _Rows(rows.pop("position"), **reorder(rows, kept))
    found = _in_stages(body, fewer, smaller)
    image = xp.arange(kept.shape[0], dtype=np.int32)[:, None]
    whole = state.tokens, state.log_probs
    return tuple(xp.set_at(old, (image, kept), new) for old, new in zip(whole, found, strict=True))


def _pick(
    log_probs: Float[ArrayLike, "B K V"], state: _Rows, search: Search
) -> Int[ArrayLike, "B K"]:
    """Choose one token per row."""
    options, xp = search.options, search.xp
    if options.method == "greedy":
        return topk.argmax(log_probs)
    logits = log_probs / np.float32(options.temperature)
    if options.top_k:
        logits = keep_top_k(logits, options.top_k)
    if options.top_p < 1:
        logits = keep_top_p(logits, options.top_p)
    keys = xp.fold_in(search.keys, state.position)
    if options.method == "gumbel":
        return xp.gumbel_argmax(keys, logits).astype(np.int32)
    # Row k has its draw, however many rows are left.
    uniform = xp.uniform(keys, (options.rows, 2))
    uniform = xp.take_along_axis(uniform, state.row[..., None], axis=1)
    return topk.draw(logits - xp.max(logits, axis=-1, keepdims=True), uniform)


def keep_top_k(logits: Float[ArrayLike, "B K V"], k: int) -> Float[ArrayLike, "B K V"]:
    """Set all but the k largest logits of each row to -inf; ties: the lowest ids stay."""
    xp = array_module(logits)
    flat = logits.reshape(-1, logits.shape[-1])
    values, ids = topk.top_k(flat, min(k, flat.shape[1]))
    rows = xp.arange(flat.shape[0], dtype=np.int32)[:, None]
    kept = xp.set_at(xp.full_like(flat, -np.inf), (rows, ids), values)
    return kept.reshape(logits.shape)


def keep_top_p(logits: Float[ArrayLike, "B K V"], mass: float) -> Float[ArrayLike, "B K V"]:
    """Set the logits outside the nucleus to -inf.

    A token stays when the more probable ones together have less than `mass` (Holtzman et al., "The
    Curious Case of Neural Text Degeneration", ICLR 2020); equally probable ones stay together. The
    least probability that stays is found by bisection, exactly, in a tenth of the time of a sort.
    """
    xp = array_module(logits)
    probs = xp.softmax(logits, axis=-1)

    def halve(_, bounds):
        low, high = bounds  # The bits of floats >= 0 are ordered as they are.
        middle = low + (high - low) // 2
        threshold = xp.from_bits(middle)[..., None]
        above = xp.sum(xp.where(probs > threshold, probs, 0.0), axis=-1)
        inside = above < mass
        return xp.where(inside, low, middle + 1), xp.where(inside, middle, high)

    low = xp.zeros(probs.shape[:-1], np.int32)
    high = xp.to_bits(xp.max(probs, axis=-1))
    _, high = xp.fori_loop(0, 31, halve, (low, high))
    threshold = xp.from_bits(high)[..., None]
    return xp.where(probs >= threshold, logits, -np.inf)
