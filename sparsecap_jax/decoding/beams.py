"""Parts that beam searches share: beams, ended captions, their ranking, and the loop.

The reference (`models/caption_model.py`, after self-critical.pytorch) runs every step: a beam that
ends is noted, loses 1000 nats and keeps expanding, and the length penalty re-ranks the noted ones.
Log-probs only decrease, so the search can stop as soon as nothing alive can still reach the K
noted captions of any image; the captions are the same.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from sparsecap_jax.decoding import topk
from sparsecap_jax.decoding.constraints import Prefix
from sparsecap_jax.decoding.options import Decoded, DecodeOptions
from sparsecap_jax.decoding.stepper import Search, reorder, spread

# Log-prob that an ended beam loses. It survives only where too few others do, but its tokens still
# count against those of later groups, as in the reference.
_ENDED = 1000.0

Extend = Callable[["Beams", Array, Array], "Beams"]


@struct.dataclass
class Beams:
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


def empty_beams(batch: int, rows: int, captions: int, options: DecodeOptions) -> Beams:
    """Return beams before the first token: one of `rows` alive, and no `captions` yet."""

    def blank(count):
        shape = batch, count, options.max_length
        return jnp.full(shape, options.pad_id, jnp.int32), jnp.zeros(shape, jnp.float32)

    alive = jnp.arange(rows, dtype=jnp.int32) == 0
    sums = jnp.where(alive, 0.0, -jnp.inf).astype(jnp.float32)
    scores = jnp.full((batch, captions), -jnp.inf, jnp.float32)
    return Beams(
        *blank(rows),
        sums=jnp.broadcast_to(sums, (batch, rows)),
        retired=jnp.zeros((batch, rows), bool),
        parents=jnp.zeros((batch, rows), jnp.int32),
        done=Decoded(*blank(captions), scores, jnp.zeros((batch, captions), jnp.int32)),
    )


class Ranking:
    """Scores of ended beams, and the bound beyond which no beam can beat them."""

    def __init__(self, search: Search):
        self._options, self._factors = search.options, search.factors
        # After t tokens, the best factor of a longer caption: sums are at most 0. Nothing is longer
        # than T; the search is over then.
        later = jax.lax.cummin(search.factors, reverse=True)
        self._later = jnp.append(later, later[-1])

    def collect(self, beams: Beams, position: Int[Array, ""]) -> Beams:
        """Move beams that ended with the token at `position` to the captions, and retire them."""
        at_end = position == self._options.max_length - 1
        ended = (beams.tokens[:, :, position] == self._options.eos_id) | at_end
        score = beams.sums * self._factors[position]
        score = jnp.where(ended & ~beams.retired, score, -jnp.inf)
        length = jnp.broadcast_to(position + 1, score.shape)
        new = Decoded(beams.tokens, beams.log_probs, score, length)
        # Earlier captions come first, so that they win ties, as in a stable sort.
        both = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), beams.done, new)
        _, kept = jax.lax.top_k(both.scores, beams.done.scores.shape[1])
        return beams.replace(
            sums=beams.sums - jnp.where(ended, jnp.float32(_ENDED), 0.0),
            retired=beams.retired | ended,
            done=reorder(both, kept),
        )

    def settled(self, beams: Beams, length: Int[Array, ""]) -> Bool[Array, " B"]:
        """Return whether no beam of `length` tokens can still become one of the best captions."""
        alive = jnp.where(beams.retired, -jnp.inf, beams.sums)
        bound = jnp.max(alive, axis=1) * self._later[length]
        return beams.done.scores[:, -1] >= bound


def run_beams(search: Search, rows: int, extend: Extend) -> Decoded:
    """Extend `rows` beams until none can become a caption of the best; return the captions.

    Args:
        search: the search, method "beam" with one group.
        rows: number of beams K.
        extend: `(beams, log_probs [B, J, V], position) -> beams`, chooses the next token. Before
            the first one the model has run on one row alone: J is 1, then K.
    """
    options, ranking = search.options, Ranking(search)

    def advance(beams, log_probs, position):
        prefix = Prefix(beams.tokens[:, : log_probs.shape[1]], position)
        beams = extend(beams, search.constrain(log_probs, prefix), position)
        return ranking.collect(beams, position)

    def going(state: tuple) -> Bool[Array, ""]:
        position, _, beams = state
        return (position < options.max_length) & ~jnp.all(ranking.settled(beams, position))

    def body(state: tuple) -> tuple:
        position, carry, beams = state
        last = beams.tokens[:, :, position - 1]
        carry, log_probs = search.stepper(reorder(carry, beams.parents), last, position)
        beams = advance(beams, tempered(log_probs, options.temperature), position)
        return position + 1, carry, beams

    beams = empty_beams(search.log_probs.shape[0], rows, options.beam_size, options)
    beams = advance(beams, search.log_probs, jnp.int32(0))
    state = jnp.int32(1), spread(search.carry, rows), beams
    return captions(jax.lax.while_loop(going, body, state)[2], options)


def extend(
    beams: Beams,
    log_probs: Float[Array, "B J V"],
    ranked: Float[Array, "B J V"],
    position: Int[Array, ""],
) -> Beams:
    """Continue the first J of k beams by the k best of all their next tokens.

    The lowest beam and the lowest id win ties. `log_probs` are kept with the captions; `ranked`,
    the same less the diversity penalties, are added to the sums.
    """
    batch, rows, vocab = log_probs.shape
    totals = beams.sums[:, :rows, None] + ranked
    sums, at = topk.top_k(totals.reshape(batch, rows * vocab), beams.sums.shape[1])
    return continued(beams, sums, at // vocab, at % vocab, log_probs, position)


def continued(
    beams: Beams,
    sums: Float[Array, "B K"],
    parents: Int[Array, "B K"],
    chosen: Int[Array, "B K"],
    log_probs: Float[Array, "B J V"],
    position: Int[Array, ""],
) -> Beams:
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


def tempered(log_probs: Float[Array, "... V"], temperature: float) -> Float[Array, "... V"]:
    """Return log-probs of the distribution raised to 1/temperature."""
    if temperature == 1.0:
        return log_probs
    return jax.nn.log_softmax(log_probs / jnp.float32(temperature), axis=-1)


def captions(beams: Beams, options: DecodeOptions) -> Decoded:
    """Return the collected captions, with PAD after their ends."""
    done = beams.done
    inside = np.arange(options.max_length) < done.lengths[..., None]
    return done.replace(
        tokens=jnp.where(inside, done.tokens, jnp.int32(options.pad_id)),
        log_probs=jnp.where(inside, done.log_probs, 0.0),
    )
