"""BLEU-1 to 4 of single captions, smoothed and with the closest reference's length.

Papineni et al., "BLEU: a Method for Automatic Evaluation of Machine Translation", ACL 2002; the
numbers are those of the COCO toolkit and the reference (`pycocoevalcap/bleu/bleu_scorer.py`).
"""

from types import ModuleType

import numpy as np
from jaxtyping import Float, Int

from sparsecap_jax.scst.ngrams import own_counts
from sparsecap_jax.types import ArrayLike

_TINY, _SMALL = 1e-15, 1e-9  # the toolkit's, added to numerators and denominators


def bleu(
    xp: ModuleType,
    captions: Int[ArrayLike, "*N T"],
    lengths: Int[ArrayLike, "*N"],
    counts: Float[ArrayLike, "*N R T 4"],
    reference_lengths: Int[ArrayLike, "*N R"],
) -> Float[ArrayLike, "*N 4"]:
    """Score captions; float64 on the host, float32 on a device.

    Args:
        xp: `numpy` or `jax.numpy`.
        captions: words of N captions.
        lengths: numbers of words.
        counts: `occurrences` of their n-grams in each reference of their image.
        reference_lengths: words of the references; negative for references that are not there.

    Returns:
        BLEU-1 to 4, 0 to 1.
    """
    own = own_counts(xp, captions, lengths, counts.dtype)
    allowed = xp.max(counts, axis=-3)
    correct = xp.sum(xp.minimum(own, allowed) / xp.maximum(own, 1), axis=-2)
    orders = np.arange(1, own.shape[-1] + 1, dtype=np.int32)
    guesses = xp.maximum(lengths[..., None] - orders + 1, 0).astype(counts.dtype)
    # Products of four precisions would leave the range of float32: their logs are summed.
    logs = xp.log(correct + counts.dtype.type(_TINY)) - xp.log(guesses + counts.dtype.type(_SMALL))
    scores = xp.exp(xp.cumsum(logs, axis=-1) / orders)
    closest = closest_length(xp, lengths, reference_lengths).astype(counts.dtype)
    words = lengths.astype(counts.dtype)
    ratio = (words + counts.dtype.type(_TINY)) / (closest + counts.dtype.type(_SMALL))
    brevity = xp.where(ratio < 1, xp.exp(xp.minimum(1 - 1 / ratio, 0)), 1)
    return scores * brevity[..., None]


def closest_length(
    xp: ModuleType, lengths: Int[ArrayLike, "*N"], reference_lengths: Int[ArrayLike, "*N R"]
) -> Int[ArrayLike, "*N"]:
    """The reference length nearest to each caption's; the smaller of two that are as near."""
    far = np.int32(1 << 14)
    distance = xp.abs(reference_lengths - lengths[..., None])
    # One number orders by distance, then by length.
    keys = xp.where(reference_lengths >= 0, distance * far + reference_lengths, far * far)
    return xp.min(keys, axis=-1) % far
