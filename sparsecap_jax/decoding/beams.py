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
from sparsecap_jax.decoding.options import Decoded, DecodeOptions
from sparsecap_jax.decoding.stepper import Stepper, reorder
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.types import PyTree

# Log-prob that an ended beam loses. It survives only where too few others do, but its tokens still
# count against those of later groups, as in the reference.
_ENDED = 1000.0

Advance = Callable[["Beams", Array, Array], "Beams"]


@struct.dataclass
class Beams:
    """K beams and the N best captions that have ended.

    Attributes:
        tokens, log_probs: `[B, K, T]`, of the beams.
        sums: `[B, K]`, which rank them; -inf for none.
        retired: `[B, K]`, whether the beam has ended before and can yield no caption any more.
        parents: `[B, K]`, which beam of the step before each one continues.
        done_tokens, done_log_probs, done_scores, done_lengths: the captions, best first.
    """

    tokens: Int[Array, "B K T"]
    log_probs: Float[Array, "B K T"]
    sums: Float[Array, "B K"]
    retired: Bool[Array, "B K"]
    parents: Int[Array, "B K"]
    done_tokens: Int[Array, "B N T"]
    done_log_probs: Float[Array, "B N T"]
    done_scores: Float[Array, "B N"]
    done_lengths: Int[Array, "B N"]


def empty_beams(
    batch: int, rows: int, options: DecodeOptions, captions: int | None = None
) -> Beams:
    """Return beams before the first token: one of `rows` alive, and no captions yet."""
    captions = rows if captions is None else captions
    alive = jnp.arange(rows, dtype=jnp.int32) == 0
    sums = jnp.where(alive, 0.0, -jnp.inf).astype(jnp.float32)

    def blank(count):
        return jnp.full((batch, count, options.max_length), options.pad_id, jnp.int32)

    return Beams(
        tokens=blank(rows),
        log_probs=jnp.zeros((batch, rows, options.max_length), jnp.float32),
        sums=jnp.broadcast_to(sums, (batch, rows)),
        retired=jnp.zeros((batch, rows), bool),
        parents=jnp.zeros((batch, rows), jnp.int32),
        done_tokens=blank(captions),
        done_log_probs=jnp.zeros((batch, captions, options.max_length), jnp.float32),
        done_scores=jnp.full((batch, captions), -jnp.inf, jnp.float32),
        done_lengths=jnp.zeros((batch, captions), jnp.int32),
    )


class Ranking:
    """Scores of ended beams, and the bound beyond which no beam can beat them.

    `factors` are those of the length penalty, see `penalty_factors`; other penalties need no new
    compilation.
    """

    def __init__(self, options: DecodeOptions, factors: Float[Array, " T"]):
        self.options = options
        self._factors = factors
        # After t tokens, the best factor of a longer caption: sums are at most 0. Nothing is longer
        # than T; the search is over then.
        later = jax.lax.cummin(factors, reverse=True)
        self._later = jnp.append(later, later[-1])

    def collect(self, beams: Beams, position: Int[Array, ""]) -> Beams:
        """Move beams that ended with the token at `position` to the captions, and retire them."""
        options = self.options
        at_end = position == options.max_length - 1
        ended = (beams.tokens[:, :, position] == options.eos_id) | at_end
        score = beams.sums * self._factors[position]
        score = jnp.where(ended & ~beams.retired, score, -jnp.inf)
        # Earlier captions come first, so that they win ties, as in a stable sort.
        scores = jnp.concatenate([beams.done_scores, score], axis=1)
        done_scores, kept = jax.lax.top_k(scores, beams.done_scores.shape[1])
        length = jnp.broadcast_to(position + 1, score.shape)

        def keep(old, new):
            return reorder(jnp.concatenate([old, new], axis=1), kept)

        return beams.replace(
            sums=beams.sums - jnp.where(ended, jnp.float32(_ENDED), 0.0),
            retired=beams.retired | ended,
            done_tokens=keep(beams.done_tokens, beams.tokens),
            done_log_probs=keep(beams.done_log_probs, beams.log_probs),
            done_scores=done_scores,
            done_lengths=keep(beams.done_lengths, length),
        )

    def settled(self, beams: Beams, length: Int[Array, ""]) -> Bool[Array, " B"]:
        """Return whether no beam of `length` tokens can still become one of the best captions."""
        alive = jnp.where(beams.retired, -jnp.inf, beams.sums)
        bound = jnp.max(alive, axis=1) * self._later[length]
        return beams.done_scores[:, -1] >= bound


def run_beams(
    stepper: Stepper, carry: PyTree, beams: Beams, advance: Advance, ranking: Ranking
) -> Decoded:
    """Step the model until no beam can become a caption of the best; return the captions.

    Args:
        stepper: the model.
        carry: its state after BOS, leaves `[B, K, ...]`.
        beams: K beams of one token.
        advance: `(beams, log_probs [B, K, V], position) -> beams`, chooses the next token.
        ranking: decides when the search is over.
    """
    options = ranking.options

    def going(state: tuple) -> Bool[Array, ""]:
        position, _, beams = state
        return (position < options.max_length) & ~jnp.all(ranking.settled(beams, position))

    def body(state: tuple) -> tuple:
        position, carry, beams = state
        last = beams.tokens[:, :, position - 1]
        carry, log_probs = stepper(reorder(carry, beams.parents), last, position)
        beams = advance(beams, tempered(log_probs, options.temperature), position)
        return position + 1, carry, beams

    beams = jax.lax.while_loop(going, body, (jnp.int32(1), carry, beams))[2]
    return captions(beams, options)


def extend(
    beams: Beams,
    log_probs: Float[Array, "B J V"],
    ranked: Float[Array, "B J V"],
    position: Int[Array, ""],
) -> Beams:
    """Continue the beams by the k best of all their next tokens; ties: lowest beam, lowest id.

    Args:
        beams: k beams, of which the first J are continued.
        log_probs: of the next tokens; kept with the captions.
        ranked: the same less the diversity penalties, added to the sums.
        position: where the tokens stand.
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
    kept = reorder((beams.tokens, beams.log_probs, beams.retired), parents)
    tokens, history, retired = kept
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
    inside = np.arange(options.max_length) < beams.done_lengths[..., None]
    return Decoded(
        tokens=jnp.where(inside, beams.done_tokens, jnp.int32(options.pad_id)),
        log_probs=jnp.where(inside, beams.done_log_probs, 0.0),
        scores=beams.done_scores,
        lengths=beams.done_lengths,
    )


def check_size(size: int, vocab: int) -> None:
    """Refuse more beams than the first step has tokens for, as the reference does."""
    if size > vocab:
        raise ConfigError(
            f"decoding option beam_size: found {size} beams (per group), expected at most the "
            f"vocabulary's {vocab}"
        )
