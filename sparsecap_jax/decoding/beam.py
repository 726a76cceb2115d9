"""Beam search and diverse beam search, exactly as the reference ranks captions (see `beams`)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sparsecap_jax.decoding.beams import (
    Beams,
    Ranking,
    captions,
    check_size,
    empty_beams,
    extend,
    run_beams,
    tempered,
)
from sparsecap_jax.decoding.constraints import Constraint, Prefix
from sparsecap_jax.decoding.options import Decoded, DecodeOptions
from sparsecap_jax.decoding.stepper import Stepper, reorder, spread
from sparsecap_jax.types import PyTree


def beam_search(
    stepper: Stepper,
    carry: PyTree,
    log_probs: Float[Array, "B 1 V"],
    constrain: Constraint,
    options: DecodeOptions,
    factors: Float[Array, " T"],
) -> Decoded:
    """Keep the K best beams of each image; return its K best captions, best first.

    Args:
        stepper: the model.
        carry: its state after BOS, leaves `[B, 1, ...]`.
        log_probs: `[B, 1, V]`, of the first token.
        constrain: applied to the log-probs of every step.
        options: method "beam" with one group.
        factors: of the length penalty.
    """
    batch, size = log_probs.shape[0], options.beam_size
    check_size(size, log_probs.shape[-1])
    ranking = Ranking(options, factors)

    def advance(beams, log_probs, position):
        prefix = Prefix(beams.tokens[:, : log_probs.shape[1]], position)
        log_probs = constrain(log_probs, prefix)
        return ranking.collect(extend(beams, log_probs, log_probs, position), position)

    beams = advance(empty_beams(batch, size, options), log_probs, jnp.int32(0))
    return run_beams(stepper, spread(carry, size), beams, advance, ranking)


def diverse_beam_search(
    stepper: Stepper,
    carry: PyTree,
    log_probs: Float[Array, "B 1 V"],
    constrain: Constraint,
    options: DecodeOptions,
    factors: Float[Array, " T"],
) -> Decoded:
    """Search in groups that shun the tokens of earlier groups; captions come group by group.

    Vijayakumar et al., "Diverse Beam Search", AAAI 2018, with Hamming diversity. As in the
    reference every group starts one step after the one before it, so that it shuns the tokens of
    beams that are still in the race one step later.

    Args:
        stepper: the model.
        carry: its state after BOS, leaves `[B, 1, ...]`.
        log_probs: `[B, 1, V]`, of the first token.
        constrain: applied to the log-probs of every step.
        options: method "beam" with G groups.
        factors: of the length penalty.
    """
    batch, count, length = log_probs.shape[0], options.num_groups, options.max_length
    size = options.beam_size // count
    check_size(size, log_probs.shape[-1])
    ranking = Ranking(options, factors)
    first_carry, first_log_probs = spread(carry, size), spread(log_probs, size)

    def advance(groups, log_probs, time):
        """Let every group that runs at `time` choose its next token."""
        groups = list(groups)
        for g in range(count):
            position = time - g
            constrained = constrain(log_probs[g], Prefix(groups[g].tokens, position))
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
        last = jnp.stack(
            [
                beams.tokens[:, :, jnp.clip(time - g - 1, 0, length - 1)]
                for g, beams in enumerate(groups)
            ]
        )
        carry = jax.vmap(reorder)(carry, parents)
        stepped, log_probs = jax.vmap(stepper, (0, 0, None))(carry, last, time)
        log_probs = tempered(log_probs, options.temperature)
        # Groups that are yet to choose their first token stand at the state after BOS.
        carry = jax.vmap(_where)(positions > 0, stepped, carry)
        log_probs = jnp.where(positions[:, None, None, None] > 0, log_probs, first_log_probs)
        return time + 1, carry, advance(groups, log_probs, time)

    groups = tuple(empty_beams(batch, size, options) for _ in range(count))
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
