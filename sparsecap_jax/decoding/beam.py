"""Beam search, plain, in diverse groups, or for captions that must contain given words.

Captions are ranked exactly as in the reference, see `beams`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sparsecap_jax.decoding import topk
from sparsecap_jax.decoding.beams import (
    Beams,
    Ranking,
    captions,
    continued,
    empty_beams,
    extend,
    run_beams,
    tempered,
)
from sparsecap_jax.decoding.constraints import Prefix
from sparsecap_jax.decoding.lexical import Automaton, keep_reachable
from sparsecap_jax.decoding.options import Decoded
from sparsecap_jax.decoding.stepper import Search, reorder, spread
from sparsecap_jax.types import PyTree


def beam_search(search: Search) -> Decoded:
    """Keep the K best beams of each image; return its K best captions, best first."""

    def advance(beams, log_probs, position):
        return extend(beams, log_probs, log_probs, position)

    return run_beams(search, search.options.beam_size, advance)


def constrained_beam_search(search: Search, automaton: Automaton) -> Decoded:
    """Return the K best captions that hold what each image's automaton requires.

    Anderson et al., "Guided Open Vocabulary Image Captioning with Constrained Beam Search", EMNLP
    2017: each of the S states of the automaton has its own K beams, so that captions which hold
    different parts of what is required do not compete. The model runs on S times K rows per image.
    """
    automaton = jax.tree.map(jnp.asarray, automaton)
    options = search.options
    # Row s * K + k is beam k of state s.
    states = jnp.repeat(jnp.arange(automaton.default.shape[1], dtype=jnp.int32), options.beam_size)
    states = jnp.broadcast_to(states, (automaton.default.shape[0], states.size))

    def advance(beams, log_probs, position):
        log_probs = jnp.broadcast_to(log_probs, (*states.shape, log_probs.shape[-1]))
        left = options.max_length - position
        log_probs = keep_reachable(log_probs, automaton, states, left, options.eos_id)
        return _extend_by_state(beams, log_probs, automaton, position, options.beam_size)

    return run_beams(search, states.shape[1], advance)


def _extend_by_state(
    beams: Beams,
    log_probs: Float[Array, "B K V"],
    automaton: Automaton,
    position: Int[Array, ""],
    size: int,
) -> Beams:
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
    sums, at = jax.lax.top_k(arriving, size)
    sums, at = sums.reshape(batch, rows), at.reshape(batch, rows)
    parents = at // (size + tokens.shape[1])
    return continued(
        beams, sums, parents, jnp.take_along_axis(chosen, at, axis=1), log_probs, position
    )


def diverse_beam_search(search: Search) -> Decoded:
    """Search in G groups that shun the tokens of earlier groups; captions come group by group.

    Vijayakumar et al., "Diverse Beam Search", AAAI 2018, with Hamming diversity. As in the
    reference every group starts one step after the one before it, so that it shuns the tokens of
    beams that are still in the race one step later.
    """
    options, ranking = search.options, Ranking(search)
    count, length = options.num_groups, options.max_length
    size = options.beam_size // count
    first_carry, first_log_probs = spread((search.carry, search.log_probs), size)

    def advance(groups, log_probs, time):
        """Let every group that runs at `time` choose its next token."""
        groups = list(groups)
        for g in range(count):
            position = time - g
            constrained = search.constrain(log_probs[g], Prefix(groups[g].tokens, position))
            shunned = _choices(groups[:g], position, constrained.shape[-1])
            ranked = constrained - shunned[:, None] * jnp.float32(options.diversity)
            new = ranking.collect(extend(groups[g], constrained, ranked, position), position)
            runs = (position >= 0) & (position < length)
            groups[g] = _where(runs, new, groups[g])
        return tuple(groups)

    def going(state):
        time, _, groups = state
        settled = [ranking.settled(beams, time - g) for g, beams in enumerate(groups)]
        return (time < length + count - 1) & ~jnp.all(jnp.stack(settled))

    def body(state):
        time, carry, groups = state
        positions = time - jnp.arange(count, dtype=jnp.int32)
        parents = jnp.stack([beams.parents for beams in groups])
        before = jnp.clip(positions - 1, 0, length - 1)
        last = [beams.tokens[:, :, at] for at, beams in zip(before, groups, strict=True)]
        carry = jax.vmap(reorder)(carry, parents)
        stepped, log_probs = jax.vmap(search.stepper, (0, 0, None))(carry, jnp.stack(last), time)
        log_probs = tempered(log_probs, options.temperature)
        # Groups that are yet to choose their first token stand at the state after BOS.
        carry = jax.vmap(_where)(positions > 0, stepped, carry)
        log_probs = jnp.where(positions[:, None, None, None] > 0, log_probs, first_log_probs)
        return time + 1, carry, advance(groups, log_probs, time)

    groups = [empty_beams(search.log_probs.shape[0], size, size, options)] * count
    groups = advance(groups, jnp.stack([first_log_probs] * count), jnp.int32(0))
    carry = jax.tree.map(lambda leaf: jnp.stack([leaf] * count), first_carry)
    groups = jax.lax.while_loop(going, body, (jnp.int32(1), carry, groups))[2]
    parts = [captions(beams, options) for beams in groups]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *parts)


def _choices(groups: list[Beams], position: Int[Array, ""], vocab: int) -> Float[Array, "B V"]:
    """Count how many beams of `groups` hold each token at `position`."""
    if not groups:
        return jnp.zeros((1, vocab), jnp.float32)
    tokens = jnp.concatenate([beams.tokens[:, :, position] for beams in groups], axis=1)
    batch = jnp.arange(tokens.shape[0], dtype=jnp.int32)[:, None]
    return jnp.zeros((tokens.shape[0], vocab), jnp.float32).at[batch, tokens].add(1.0)


def _where(condition: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
