"""Greedy search and random sampling, in which the rows of an image are independent."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from sparsecap_jax.decoding import topk
from sparsecap_jax.decoding.constraints import Prefix
from sparsecap_jax.decoding.stepper import Decoded, Search, reorder, spread
from sparsecap_jax.types import PyTree

# Samples are searched for in stages of ever fewer rows: of all, down to these shares of them.
_STAGES = (0.75, 0.5, 0.25)
_MANY = 10  # Fewer rows than this end too unevenly to be worth a stage's compilation.


@struct.dataclass
class _Rows:
    """State of the search; `row` numbers the rows of an image."""

    position: Int[Array, ""]
    row: Int[Array, "B K"]
    carry: PyTree
    tokens: Int[Array, "B K T"]
    log_probs: Float[Array, "B K T"]
    finished: Bool[Array, "B K"]


def sequential_search(search: Search) -> Decoded:
    """Choose token after token, the best or a random one, until all captions have ended.

    Captions are returned in the order of their rows; scores are sums of log-probs.
    """
    options = search.options
    carry, first = search.begin()
    batch, rows, length = first.shape[0], options.rows, options.max_length

    def choose(state: _Rows, log_probs: Float[Array, "B K V"]) -> _Rows:
        log_probs = search.constrain(log_probs, Prefix(state.tokens, state.position))
        chosen = _pick(log_probs, state, search)
        gained = jnp.take_along_axis(log_probs, chosen[..., None], axis=2)[..., 0]
        gained = jnp.where(state.finished, 0.0, gained)
        chosen = jnp.where(state.finished, jnp.int32(options.pad_id), chosen)
        return state.replace(
            position=state.position + 1,
            tokens=state.tokens.at[:, :, state.position].set(chosen),
            log_probs=state.log_probs.at[:, :, state.position].set(gained),
            finished=state.finished | (chosen == options.eos_id),
        )

    def body(state: _Rows) -> _Rows:
        last = state.tokens[:, :, state.position - 1]
        carry, log_probs = search.step(state.carry, last, state.position)
        return choose(state.replace(carry=carry), log_probs)

    state = _Rows(
        position=jnp.int32(0),
        row=jnp.broadcast_to(jnp.arange(rows, dtype=jnp.int32), (batch, rows)),
        carry=spread(carry, rows),
        tokens=jnp.full((batch, rows, length), options.pad_id, jnp.int32),
        log_probs=jnp.zeros((batch, rows, length), jnp.float32),
        finished=jnp.zeros((batch, rows), bool),
    )
    # Numbers of rows per image to which the search may shrink. Dropout and Gumbel noise are drawn
    # for all rows in one array: such a search does not shrink, so that its draws do not depend on
    # which captions have ended.
    sizes = []
    if options.method == "sample" and rows >= _MANY and search.dropout_rng is None:
        sizes = sorted({math.ceil(share * rows) for share in _STAGES}, reverse=True)
    tokens, log_probs = _in_stages(body, choose(state, spread(first, rows)), sizes)
    before_eos = jnp.sum(jnp.cumsum(tokens == options.eos_id, axis=-1) == 0, axis=-1)
    lengths = jnp.minimum(before_eos + 1, length)
    return Decoded(tokens, log_probs, jnp.sum(log_probs, axis=-1), lengths)


def _in_stages(
    body: Callable[[_Rows], _Rows], state: _Rows, sizes: list[int]
) -> tuple[Int[Array, "B K T"], Float[Array, "B K T"]]:
    """Repeat `body` until all captions have ended, on fewer rows where enough of them have."""
    size, *smaller = sizes or [0]

    def going(state: _Rows) -> Bool[Array, ""]:
        most = jnp.max(jnp.sum(~state.finished, axis=-1))
        return (state.position < state.tokens.shape[-1]) & (most > size)

    state = jax.lax.while_loop(going, body, state)
    if not size:
        return state.tokens, state.log_probs
    kept = jnp.argsort(state.finished, axis=-1)[:, :size]  # stable: unfinished rows come first
    rows = dict(vars(state))
    fewer = _Rows(rows.pop("position"), **reorder(rows, kept))
    found = _in_stages(body, fewer, smaller)
    image = jnp.arange(kept.shape[0], dtype=jnp.int32)[:, None]
    whole = state.tokens, state.log_probs
    return tuple(old.at[image, kept].set(new) for old, new in zip(whole, found, strict=True))


def _pick(log_probs: Float[Array, "B K V"], state: _Rows, search: Search) -> Int[Array, "B K"]:
    """Choose one token per row."""
    options = search.options
    if options.method == "greedy":
        return topk.argmax(log_probs)
    logits = log_probs / jnp.float32(options.temperature)
    if options.top_k:
        logits = keep_top_k(logits, options.top_k)
    if options.top_p < 1:
        logits = keep_top_p(logits, options.top_p)
    keys = jax.vmap(lambda key: jax.random.fold_in(key, state.position))(search.keys)
    if options.method == "gumbel":
        draw = jax.vmap(lambda key, row: jax.random.categorical(key, row, axis=-1))
        return draw(keys, logits).astype(jnp.int32)
    # Row k has its draw, however many rows are left.
    shape = (options.rows, 2)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, shape, jnp.float32))(keys)
    uniform = jnp.take_along_axis(uniform, state.row[..., None], axis=1)
    return topk.draw(logits - jnp.max(logits, axis=-1, keepdims=True), uniform)


def keep_top_k(logits: Float[Array, "B K V"], k: int) -> Float[Array, "B K V"]:
    """Set all but the k largest logits of each row to -inf; ties: the lowest ids stay."""
    flat = logits.reshape(-1, logits.shape[-1])
    values, ids = topk.top_k(flat, min(k, flat.shape[1]))
    rows = jnp.arange(flat.shape[0], dtype=jnp.int32)[:, None]
    return jnp.full_like(flat, -jnp.inf).at[rows, ids].set(values).reshape(logits.shape)


def keep_top_p(logits: Float[Array, "B K V"], mass: float) -> Float[Array, "B K V"]:
    """Set the logits outside the nucleus to -inf.

    A token stays when the more probable ones together have less than `mass` (Holtzman et al., "The
    Curious Case of Neural Text Degeneration", ICLR 2020); equally probable ones stay together. The
    least probability that stays is found by bisection, exactly, in a tenth of the time of a sort.
    """
    probs = jax.nn.softmax(logits, axis=-1)

    def halve(_, bounds):
        low, high = bounds  # The bits of floats >= 0 are ordered as they are.
        middle = low + (high - low) // 2
        threshold = jax.lax.bitcast_convert_type(middle, jnp.float32)[..., None]
        above = jnp.sum(jnp.where(probs > threshold, probs, 0.0), axis=-1)
        inside = above < mass
        return jnp.where(inside, low, middle + 1), jnp.where(inside, middle, high)

    low = jnp.zeros(probs.shape[:-1], jnp.int32)
    high = jax.lax.bitcast_convert_type(jnp.max(probs, axis=-1), jnp.int32)
    _, high = jax.lax.fori_loop(0, 31, halve, (low, high))
    threshold = jax.lax.bitcast_convert_type(high, jnp.float32)[..., None]
    return jnp.where(probs >= threshold, logits, -jnp.inf)
