"""Beam search, plain, in diverse groups, or for captions that must contain given words.

The reference (`models/caption_model.py`, after self-critical.pytorch) runs every step: a beam that
ends is noted, loses 1000 nats and keeps expanding, and the length penalty re-ranks the noted ones.
Log-probs only decrease, so the search can stop as soon as nothing alive can still reach the K
noted captions of any image; the captions are the same.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from sparsecap_jax.decoding import topk
from sparsecap_jax.decoding.constraints import Prefix
from sparsecap_jax.decoding.lexical import Automaton, keep_reachable
from sparsecap_jax.decoding.options import DecodeOptions
from sparsecap_jax.decoding.stepper import Decoded, Search, reorder, spread
from sparsecap_jax.types import PyTree

# Log-prob that an ended beam loses. It survives only where too few others do, but its tokens still
# count against those of later groups, as in the reference.
_ENDED = 1000.0


@struct.dataclass
class _Beams:
    """K beams and the N best captions that have ended.

    Attributes:
        tokens, log_probs: `[B, K, T]`, of the beams.
        sums: `[B, K]`, which rank them; -inf for none.
        retired: `[B, K]`, whether the beam has ended before and can yield no caption any more.
        parents: `[B, K]`, which beam of the step before each one continues.
        done: the captions, best first.
    """

    tokens: Int[Array, "B K T"]
    log_probs: Float[Array, "B K T"]
    sums: Float[Array, "B K"]
    retired: Bool[Array, "B K"]
    parents: Int[Array, "B K"]
    done: Decoded


def beam_search(search: Search, automaton: Automaton | None = None) -> Decoded:
    """Keep the K best beams of each image; return its K best captions, best first.

    With an automaton, captions hold what it requires: each of its S states has its own K beams, so
    that captions which hold different parts of what is required do not compete. The model runs on
    S times K rows per image. Source: Anderson et al., "Guided Open Vocabulary Image Captioning with
    Constrained Beam Search", EMNLP 2017.
    """
    options, later = search.options, _least_later(search)
    carry, first = search.begin()
    batch, rows = first.shape[0], options.beam_size
    if automaton is not None:
        automaton = jax.tree.map(jnp.asarray, automaton)
        # Row s * K + k is beam k of state s.
        states = jnp.arange(automaton.default.shape[1], dtype=jnp.int32)
        states = jnp.repeat(states[None], batch, axis=0).repeat(rows, axis=1)
        rows = states.shape[1]

    def advance(beams, log_probs, position):
        # Before the first token the model has run on one row alone.
        prefix = Prefix(beams.tokens[:, : log_probs.shape[1]], position)
        log_probs = search.constrain(log_probs, prefix)
        if automaton is None:
            beams = _extend(beams, log_probs, log_probs, position)
        else:
            log_probs = jnp.broadcast_to(log_probs, (batch, rows, log_probs.shape[-1]))
            left = options.max_length - position
            log_probs = keep_reachable(log_probs, automaton, states, left, options.eos_id)
            beams = _extend_by_state(beams, log_probs, automaton, position, options.beam_size)
        return _collect(beams, position, search)

    def going(state):
        position, _, beams = state
        return (position < options.max_length) & ~jnp.all(_settled(beams, position, later))

    def body(state):
        position, carry, beams = state
        last = beams.tokens[:, :, position - 1]
        carry, log_probs = search.step(reorder(carry, beams.parents), last, position)
        beams = advance(beams, _tempered(log_probs, options.temperature), position)
        return position + 1, carry, beams

    beams = advance(_empty(batch, rows, options.beam_size, options), first, jnp.int32(0))
    state = jnp.int32(1), spread(carry, rows), beams
    return _captions(jax.lax.while_loop(going, body, state)[2], options)


def diverse_beam_search(search: Search) -> Decoded:
    """Search in G groups that shun the tokens of earlier groups; captions come group by group.

    Vijayakumar et al., "Diverse Beam Search", AAAI 2018, with Hamming diversity. As in the
    reference every group starts one step after the one before it, so that it shuns the tokens of
    beams that are still in the race one step later.
    """
    options, later = search.options, _least_later(search)
    count, length = options.num_groups, options.max_length
    size = options.beam_size // count
    first_carry, first = spread(search.begin(), size)
    batch, _, vocab = first.shape
    image = jnp.arange(batch, dtype=jnp.int32)[:, None]

    def advance(groups, log_probs, time):
        """Let every group that runs at `time` choose its next token."""
        groups = list(groups)
        for g, beams in enumerate(groups):
            position = time - g
            constrained = search.constrain(log_probs[g], Prefix(beams.tokens, position))
            choices = jnp.zeros((batch, vocab), jnp.float32)
            for earlier in groups[:g]:
                choices = choices.at[image, earlier.tokens[:, :, position]].add(1.0)
            ranked = constrained - choices[:, None] * jnp.float32(options.diversity)
            new = _collect(_extend(beams, constrained, ranked, position), position, search)
            groups[g] = _where((position >= 0) & (position < length), new, beams)
        return tuple(groups)

    def going(state):
        time, _, groups = state
        settled = [_settled(beams, time - g, later) for g, beams in enumerate(groups)]
        return (time < length + count - 1) & ~jnp.all(jnp.stack(settled))

    def body(state):
        time, carry, groups = state
        positions = time - jnp.arange(count, dtype=jnp.int32)
        parents = jnp.stack([beams.parents for beams in groups])
        before = jnp.clip(positions - 1, 0, length - 1)
        last = [beams.tokens[:, :, at] for at, beams in zip(before, groups, strict=True)]
        carry = jax.vmap(reorder)(carry, parents)
        stepped, log_probs = jax.vmap(search.step, (0, 0, None))(carry, jnp.stack(last), time)
        log_probs = _tempered(log_probs, options.temperature)
        # Groups that are yet to choose their first token stand at the state after BOS.
        carry = jax.vmap(_where)(positions > 0, stepped, carry)
        log_probs = jnp.where(positions[:, None, None, None] > 0, log_probs, first)
        return time + 1, carry, advance(groups, log_probs, time)

    groups = [_empty(batch, size, size, options)] * count
    groups = advance(groups, jnp.stack([first] * count), jnp.int32(0))
    carry = jax.tree.map(lambda leaf: jnp.stack([leaf] * count), first_carry)
    groups = jax.lax.while_loop(going, body, (jnp.int32(1), carry, groups))[2]
    return _joined(*(_captions(beams, options) for beams in groups))


def _empty(batch: int, rows: int, captions: int, options: DecodeOptions) -> _Beams:
    """Return beams before the first token: one of `rows` alive, and no `captions` yet."""

    def blank(count):
        shape = batch, count, options.max_length
        return jnp.full(shape, options.pad_id, jnp.int32), jnp.zeros(shape, jnp.float32)

    scores = jnp.full((batch, captions), -jnp.inf, jnp.float32)
    return _Beams(
        *blank(rows),
        sums=jnp.full((batch, rows), -jnp.inf, jnp.float32).at[:, 0].set(0.0),
        retired=jnp.zeros((batch, rows), bool),
        parents=jnp.zeros((batch, rows), jnp.int32),
        done=Decoded(*blank(captions), scores, jnp.zeros((batch, captions), jnp.int32)),
    )


def _extend(
    beams: _Beams,
    log_probs: Float[Array, "B J V"],
    ranked: Float[Array, "B J V"],
    position: Int[Array, ""],
) -> _Beams:
    """Continue the first J of k beams by the k best of all their next tokens.

    The lowest beam and the lowest id win ties. `log_probs` are kept with the captions; `ranked`,
    the same less the diversity penalties, are added to the sums.
    """
    batch, rows, vocab = log_probs.shape
    totals = beams.sums[:, :rows, None] + ranked
    sums, at = topk.top_k(totals.reshape(batch, rows * vocab), beams.sums.shape[1])
    return _continued(beams, sums, at // vocab, at % vocab, log_probs, position)


def _extend_by_state(beams, log_probs, automaton: Automaton, position, size: int) -> _Beams:
    """Fill the `size` beams of every state with the best continuations that lead to it.

    A beam's best tokens that are not special all lead to one state; special ones are looked at
    one by one. So `size` + E continuations of each beam suffice.
    """
    batch, rows, vocab = log_probs.shape
    totals = beams.sums[..., None] + log_probs
    tokens = automaton.tokens
    is_special = jnp.any(tokens[..., None] == jnp.arange(vocab, dtype=jnp.int32), axis=1)
    others = jnp.where(is_special[:, None], jnp.float32(-jnp.inf), totals)
    best, chosen = topk.top_k(others.reshape(batch * rows, vocab), size)
    special = jnp.broadcast_to(jnp.maximum(tokens, 0)[:, None], (batch, rows, tokens.shape[1]))
    reached = jnp.take_along_axis(totals, special, axis=2)
    reached = jnp.where(tokens[:, None] < 0, jnp.float32(-jnp.inf), reached)

    def joined(for_others, for_special):
        for_others = for_others.reshape(batch, rows, size)
        return jnp.concatenate([for_others, for_special], axis=2).reshape(batch, -1)

    after = jnp.repeat(automaton.default, size, axis=1)
    after = joined(jnp.repeat(after, size, axis=1), jnp.repeat(automaton.special, size, axis=1))
    values, chosen = joined(best, reached), joined(chosen, special)
    state = jnp.arange(rows // size, dtype=jnp.int32)[:, None]
    arriving = jnp.where(after[:, None] == state, values[:, None], jnp.float32(-jnp.inf))
    sums, at = (part.reshape(batch, rows) for part in jax.lax.top_k(arriving, size))
    parents = at // (size + tokens.shape[1])
    chosen = jnp.take_along_axis(chosen, at, axis=1)
    return _continued(beams, sums, parents, chosen, log_probs, position)


def _continued(beams: _Beams, sums, parents, chosen, log_probs, position) -> _Beams:
    """Replace beam k by beam `parents[:, k]` followed by the token `chosen[:, k]`."""
    batch, rows, vocab = log_probs.shape
    flat = log_probs.reshape(batch, rows * vocab)
    gained = jnp.take_along_axis(flat, parents * vocab + chosen, axis=1)
    kept = beams.tokens, beams.log_probs, beams.retired
    tokens, history, retired = reorder(kept, parents)
    return beams.replace(
        tokens=tokens.at[:, :, position].set(chosen),
        log_probs=history.at[:, :, position].set(gained),
        sums=sums,
        retired=retired,
        parents=parents,
    )


def _collect(beams: _Beams, position: Int[Array, ""], search: Search) -> _Beams:
    """Move beams that ended with the token at `position` to the captions, and retire them."""
    at_end = position == search.options.max_length - 1
    ended = (beams.tokens[:, :, position] == search.options.eos_id) | at_end
    score = beams.sums * search.factors[position]
    score = jnp.where(ended & ~beams.retired, score, -jnp.inf)
    length = jnp.broadcast_to(position + 1, score.shape)
    # Earlier captions come first, so that they win ties, as in a stable sort.
    both = _joined(beams.done, Decoded(beams.tokens, beams.log_probs, score, length))
    _, kept = jax.lax.top_k(both.scores, beams.done.scores.shape[1])
    return beams.replace(
        sums=beams.sums - jnp.where(ended, jnp.float32(_ENDED), 0.0),
        retired=beams.retired | ended,
        done=reorder(both, kept),
    )


def _least_later(search: Search) -> Float[Array, " U"]:
    """Return the best factor of a caption of more than t tokens: sums are at most 0."""
    later = jax.lax.cummin(search.factors, reverse=True)
    return jnp.append(later, later[-1])  # Nothing is longer than T; the search is over then.


def _settled(beams: _Beams, length: Int[Array, ""], later: Float[Array, " U"]) -> Bool[Array, " B"]:
    """Return whether no beam of `length` tokens can still become one of the best captions."""
    alive = jnp.where(beams.retired, -jnp.inf, beams.sums)
    return beams.done.scores[:, -1] >= jnp.max(alive, axis=1) * later[length]


def _tempered(log_probs: Float[Array, "... V"], temperature: float) -> Float[Array, "... V"]:
    """Return log-probs of the distribution raised to 1/temperature."""
    if temperature == 1.0:
        return log_probs
    return jax.nn.log_softmax(log_probs / jnp.float32(temperature), axis=-1)


def _captions(beams: _Beams, options: DecodeOptions) -> Decoded:
    """Return the collected captions, with PAD after their ends."""
    done = beams.done
    inside = np.arange(options.max_length) < done.lengths[..., None]
    return done.replace(
        tokens=jnp.where(inside, done.tokens, jnp.int32(options.pad_id)),
        log_probs=jnp.where(inside, done.log_probs, 0.0),
    )


def _joined(*captions: Decoded) -> Decoded:
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *captions)


def _where(condition: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
