"""Beam search for captions that must contain given words.

Anderson et al., "Guided Open Vocabulary Image Captioning with Constrained Beam Search", EMNLP 2017:
every state of the automaton has its own K beams, so that captions which hold different parts of
what is required do not compete. What ends a caption, how captions are ranked and when the search
stops is as in `beams`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sparsecap_jax.decoding import topk
from sparsecap_jax.decoding.beams import (
    Beams,
    Ranking,
    check_size,
    continued,
    empty_beams,
    run_beams,
)
from sparsecap_jax.decoding.constraints import Constraint, Prefix
from sparsecap_jax.decoding.lexical import Automaton, keep_reachable
from sparsecap_jax.decoding.options import Decoded, DecodeOptions
from sparsecap_jax.decoding.stepper import Stepper, spread
from sparsecap_jax.types import PyTree


def constrained_beam_search(
    stepper: Stepper,
    carry: PyTree,
    log_probs: Float[Array, "B 1 V"],
    constrain: Constraint,
    options: DecodeOptions,
    factors: Float[Array, " T"],
    automaton: Automaton,
) -> Decoded:
    """Return the K best captions that hold what each image's automaton requires.

    The model runs on S times K rows per image, where S is the number of states.

    Args:
        stepper: the model.
        carry: its state after BOS, leaves `[B, 1, ...]`.
        log_probs: `[B, 1, V]`, of the first token.
        constrain: applied to the log-probs of every step.
        options: method "beam" with one group.
        factors: of the length penalty.
        automaton: of the images.
    """
    automaton = jax.tree.map(jnp.asarray, automaton)
    batch, size = log_probs.shape[0], options.beam_size
    check_size(size, log_probs.shape[-1])
    rows = automaton.default.shape[1] * size
    # Row s * K + k is beam k of state s.
    states = jnp.arange(rows, dtype=jnp.int32) // size
    states = jnp.broadcast_to(states, (batch, rows))
    ranking = Ranking(options, factors)

    def advance(beams, log_probs, position):
        log_probs = constrain(log_probs, Prefix(beams.tokens, position))
        left = options.max_length - position
        log_probs = keep_reachable(log_probs, automaton, states, left, options.eos_id)
        beams = extend_by_state(beams, log_probs, automaton, position, size)
        return ranking.collect(beams, position)

    beams = empty_beams(batch, rows, options, size)
    beams = advance(beams, spread(log_probs, rows), jnp.int32(0))
    return run_beams(stepper, spread(carry, rows), beams, advance, ranking)


def extend_by_state(
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
