"""Beam search, plain, in diverse groups, or for captions that must contain given words.

The reference (`models/caption_model.py`, after self-critical.pytorch) runs every step: a beam that
ends is noted, loses 1000 nats and keeps expanding, and the length penalty re-ranks the noted ones.
Log-probs only decrease, so the search can stop as soon as nothing alive can still reach the K
noted captions of any image; the captions are the same.
"""

from types import ModuleType
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from sparsecap_jax.array_modules import array_module
from sparsecap_jax.decoding import topk
from sparsecap_jax.decoding.constraints import Prefix
from sparsecap_jax.decoding.lexical import Automaton, keep_reachable
from sparsecap_jax.decoding.options import DecodeOptions
from sparsecap_jax.decoding.stepper import Decoded, Search, reorder, spread
from sparsecap_jax.types import ArrayLike

# Log-prob that an ended beam loses. It survives only where too few others do, but its tokens still
# count against those of later groups, as in the reference.
_ENDED = 1000.0


class _Beams(NamedTuple):
    """K beams and the N best captions that have ended.

    Attributes:
        tokens, log_probs: `[B, K, T]`, of the beams.
        sums: `[B, K]`, which rank them; -inf for none.
        retired: `[B, K]`, whether the beam has ended before and can yield no caption any more.
        parents: `[B, K]`, which beam of the step before each one continues.
        done: the captions, best first.
    """

    tokens: Int[ArrayLike, "B K T"]
    log_probs: Float[ArrayLike, "B K T"]
    sums: Float[ArrayLike, "B K"]
    retired: Bool[ArrayLike, "B K"]
    parents: Int[ArrayLike, "B K"]
    done: Decoded


def beam_search(search: Search, automaton: Automaton | None = None) -> Decoded:
    """Keep the K best beams of each image; return its K best captions, best first.

    With an automaton, captions hold what it requires: each of its S states has its own K beams, so
    that captions which hold different parts of what is required do not compete. The model runs on
    S times K rows per image. Source: Anderson et al., "Guided Open Vocabulary Image Captioning with
    Constrained Beam Search", EMNLP 2017.
    """
    options, later, xp = search.options, _least_later(search), search.xp
    carry, first = search.begin()
    batch, rows = first.shape[0], options.beam_size
    if automaton is not None:
        automaton = Automaton(*map(xp.asarray, automaton))
        # Row s * K + k is beam k of state s.
        states = xp.arange(automaton.default.shape[1], dtype=np.int32)
        states = xp.repeat(states[None], batch, axis=0).repeat(rows, axis=1)
        rows = states.shape[1]

    def advance(beams, log_probs, position):
        # Before the first token the model has run on one row alone.
        prefix = Prefix(beams.tokens[:, : log_probs.shape[1]], position)
        log_probs = search.constrain(log_probs, prefix)
        if automaton is None:
            beams = _extend(beams, log_probs, log_probs, position)
        else:
            log_probs = xp.broadcast_to(log_probs, (batch, rows, log_probs.shape[-1]))
            left = options.max_length - position
            log_probs = keep_reachable(log_probs, automaton, states, left, options.eos_id)
            beams = _extend_by_state(beams, log_probs, automaton, position, options.beam_size)
        return _collect(beams, position, search)

    def going(state):
        position, _, beams = state
        return (position < options.max_length) & ~xp.all(_settled(beams, position, later))

    def body(state):
        position, carry, beams = state
        last = beams.tokens[:, :, position - 1]
        carry, log_probs = search.step(reorder(carry, beams.parents), last, position)
        beams = advance(beams, _tempered(log_probs, options.temperature), position)
        return position + 1, carry, beams

    beams = advance(_empty(xp, batch, rows, options.beam_size, options), first, xp.int32(0))
    state = xp.int32(1), spread(xp, carry, rows), beams
    return _captions(xp.while_loop(going, body, state)[2], options)


def diverse_beam_search(search: Search) -> Decoded:
    """Search in G groups that shun the tokens of earlier groups; captions come group by group.

    Vijayakumar et al., "Diverse Beam Search", AAAI 2018, with Hamming diversity. As in the
    reference every group starts one step after the one before it, so that it shuns the tokens of
    beams that are still in the race one step later.
    """
    options, later, xp = search.options, _least_later(search), search.xp
    count, length = options.num_groups, options.max_length
    size = options.beam_size // count
    first_carry, first = spread(xp, search.begin(), options.beam_size)
    batch, _, vocab = first.shape
    image = xp.arange(batch, dtype=np.int32)[:, None]
    first_rows = size * np.arange(count, dtype=np.int32)  # of each group

    def of_rows(groups):
        """Turn a number for each group into one for each row `[1, K]`."""
        return xp.repeat(groups, size)[None]

    def advance(groups, log_probs, time):
        """Let every group that runs at `time` choose its next token."""
        groups = list(groups)
        for g, beams in enumerate(groups):
            running = (time >= g) & (time < g + length)
            position = xp.clip(time - g, 0, length - 1)
            rows = log_probs[:, g * size : (g + 1) * size]
            constrained = search.constrain(rows, Prefix(beams.tokens, position))
            choices = xp.zeros((batch, vocab), np.float32)
            for earlier in groups[:g]:
                choices = xp.add_at(
                    choices, (image, earlier.tokens[:, :, position]), np.float32(1.0)
                )
            ranked = constrained - choices[:, None] * np.float32(options.diversity)
            new = _collect(_extend(beams, constrained, ranked, position), position, search)
            groups[g] = xp.tree_map(lambda a, b, on=running: xp.where(on, a, b), new, beams)
        return tuple(groups)

    def going(state):
        time, _, groups = state
        lengths = xp.clip(time - np.arange(count, dtype=np.int32), 0, length)
        settled = [_settled(*one, later) for one in zip(groups, lengths, strict=True)]
        return (time < length + count - 1) & ~xp.all(xp.stack(settled))

    def body(state):
        time, carry, groups = state
        positions = time - xp.arange(count, dtype=np.int32)
        pairs = list(zip(first_rows, groups, strict=True))
        parents = xp.concatenate([beams.parents + row for row, beams in pairs], axis=1)
        before = xp.clip(positions - 1, 0, length - 1)
        last = [beams.tokens[:, :, at] for at, beams in zip(before, groups, strict=True)]
        carry = reorder(carry, parents)
        stepped, log_probs = search.step(carry, xp.concatenate(last, axis=1), time)
        log_probs = _tempered(log_probs, options.temperature)
        # Groups that are yet to choose their first token stand at the state after BOS.
        begun = of_rows(positions > 0)

        def where_begun(new, old):
            return xp.where(begun.reshape(*begun.shape, *[1] * (new.ndim - 2)), new, old)

        carry = xp.tree_map(where_begun, stepped, carry)
        return time + 1, carry, advance(groups, where_begun(log_probs, first), time)

    groups = [_empty(xp, batch, size, size, options)] * count
    groups = advance(groups, first, xp.int32(0))
    groups = xp.while_loop(going, body, (xp.int32(1), first_carry, groups))[2]
    return _joined(*(_captions(beams, options) for beams in groups))


def _empty(xp: ModuleType, batch: int, rows: int, captions: int, options: DecodeOptions) -> _Beams:
    """Return beams before the first token: one of `rows` alive, and no `captions` yet."""

    def blank(count: int) -> tuple[ArrayLike, ArrayLike]:
        shape = batch, count, options.max_length
        return xp.full(shape, options.pad_id, np.int32), xp.zeros(shape, np.float32)

    tokens, log_probs = blank(captions)
    scores = xp.full((batch, captions), -np.inf, np.float32)
    done = Decoded(tokens, log_probs, scores, xp.zeros((batch, captions), np.int32))
    tokens, log_probs = blank(rows)
    return _Beams(
        tokens=tokens,
        log_probs=log_probs,
        sums=xp.set_at(xp.full((batch, rows), -np.inf, np.float32), np.s_[:, 0], 0.0),
        retired=xp.zeros((batch, rows), bool),
        parents=xp.zeros((batch, rows), np.int32),
        done=done,
    )


def _extend(
    beams: _Beams,
    log_probs: Float[ArrayLike, "B J V"],
    ranked: Float[ArrayLike, "B J V"],
    position: Int[ArrayLike, ""],
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
    (batch, rows, vocab), xp = log_probs.shape, array_module(log_probs)
    totals = beams.sums[..., None] + log_probs
    tokens = automaton.tokens
    is_special = (tokens[..., None] == xp.arange(vocab, dtype=np.int32)).any(axis=1)
    others = xp.where(is_special[:, None], np.float32(-np.inf), totals)
    best, chosen = topk.top_k(others.reshape(batch * rows, vocab), size)
    special = xp.broadcast_to(xp.maximum(tokens, 0)[:, None], (batch, rows, tokens.shape[1]))
    reached = xp.take_along_axis(totals, special, axis=2)
    reached = xp.where(tokens[:, None] < 0, np.float32(-np.inf), reached)

    def joined(for_others, for_special):
        for_others = for_others.reshape(batch, rows, size)
        return xp.concatenate([for_others, for_special], axis=2).reshape(batch, -1)

    after = xp.repeat(automaton.default, size, axis=1)
    after = joined(xp.repeat(after, size, axis=1), xp.repeat(automaton.special, size, axis=1))
    values, chosen = joined(best, reached), joined(chosen, special)
    state = xp.arange(rows // size, dtype=np.int32)[:, None]
    arriving = xp.where(after[:, None] == state, values[:, None], np.float32(-np.inf))
    sums, at = (part.reshape(batch, rows) for part in xp.top_k(arriving, size))
    parents = at // (size + tokens.shape[1])
    chosen = xp.take_along_axis(chosen, at, axis=1)
    return _continued(beams, sums, parents, chosen, log_probs, position)


def _continued(beams: _Beams, sums, parents, chosen, log_probs, position) -> _Beams:
    """Replace beam k by beam `parents[:, k]` followed by the token `chosen[:, k]`."""
    (batch, rows, vocab), xp = log_probs.shape, array_module(log_probs)
    flat, place = log_probs.reshape(batch, rows * vocab), np.s_[:, :, position]
    gained = xp.take_along_axis(flat, parents * vocab + chosen, axis=1)
    kept = beams.tokens, beams.log_probs, beams.retired
    tokens, history, retired = reorder(kept, parents)
    return beams._replace(
        tokens=xp.set_at(tokens, place, chosen),
        log_probs=xp.set_at(history, place, gained),
        sums=sums,
        retired=retired,
        parents=parents,
    )


def _collect(beams: _Beams, position: Int[ArrayLike, ""], search: Search) -> _Beams:
    """Move beams that ended with the token at `position` to the captions, and retire them."""
    xp = search.xp
    at_end = position == search.options.max_length - 1
    ended = (beams.tokens[:, :, position] == search.options.eos_id) | at_end

    def collect(beams: _Beams) -> _Beams:
        score = beams.sums * search.factors[position]
        score = xp.where(ended & ~beams.retired, score, -np.inf)
        length = xp.broadcast_to(position + 1, score.shape)
        # Earlier captions come first, so that they win ties, as in a stable sort.
        both = _joined(beams.done, Decoded(beams.tokens, beams.log_probs, score, length))
        _, kept = xp.top_k(both.scores, beams.done.scores.shape[1])
        return beams._replace(
            sums=beams.sums - xp.where(ended, np.float32(_ENDED), np.float32(0.0)),
            retired=beams.retired | ended,
            done=reorder(both, kept),
        )

    return xp.update_if(xp.any(ended), collect, beams)


def _least_later(search: Search) -> Float[ArrayLike, " U"]:
    """Return the best factor of a caption of more than t tokens: sums are at most 0."""
    later = search.xp.least_later(search.factors)
    return search.xp.append(later, later[-1])  # Nothing is longer than T; the search is over then.


def _settled(
    beams: _Beams, length: Int[ArrayLike, ""], later: Float[ArrayLike, " U"]
) -> Bool[ArrayLike, " B"]:
    """Return whether no beam of `length` tokens can still become one of the best captions."""
    xp = array_module(beams.sums)
    alive = xp.where(beams.retired, -np.inf, beams.sums)
    return beams.done.scores[:, -1] >= xp.max(alive, axis=1) * later[length]


def _tempered(
    log_probs: Float[ArrayLike, "... V"], temperature: float
) -> Float[ArrayLike, "... V"]:
    """Return log-probs of the distribution raised to 1/temperature."""
    if temperature == 1.0:
        return log_probs
    return array_module(log_probs).log_softmax(log_probs / np.float32(temperature), axis=-1)


def _captions(beams: _Beams, options: DecodeOptions) -> Decoded:
    """Return the collected captions, with PAD after their ends."""
    done, xp = beams.done, array_module(beams.tokens)
    inside = np.arange(options.max_length) < done.lengths[..., None]
    return done._replace(
        tokens=xp.where(inside, done.tokens, np.int32(options.pad_id)),
        log_probs=xp.where(inside, done.log_probs, 0.0),
    )


def _joined(*captions: Decoded) -> Decoded:
    xp = array_module(captions[0].scores)
    return xp.tree_map(lambda *parts: xp.concatenate(parts, axis=1), *captions)
