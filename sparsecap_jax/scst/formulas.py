"""CIDEr-D and BLEU-1 to 4 of single captions against the references of their images.

CIDEr-D: Vedantam et al., "CIDEr: Consensus-based Image Description Evaluation", CVPR 2015, arXiv
1411.5726; the numbers are those of the reference (`scst/cider/pyciderevalcap/ciderD`).

    CIDEr-D = 10 / (4 R) * sum over references r and n = 1..4 of
        exp(-(b(h) - b(r))^2 / (2 * 6^2)) * sum_g min(v_h(g), v_r(g)) * v_r(g) / (|v_h| |v_r|)

with v(g) = tf(g) * idf(g) over the n-grams g of one order, and b the number of bigrams.

BLEU, smoothed and with the closest reference's length: Papineni et al., "BLEU: a Method for
Automatic Evaluation of Machine Translation", ACL 2002; the numbers are those of the COCO toolkit
and the reference (`pycocoevalcap/bleu/bleu_scorer.py`).
"""

from types import ModuleType

import numpy as np
from jaxtyping import Float, Int

from sparsecap_jax.scst.ngrams import own_counts
from sparsecap_jax.types import ArrayLike

SIGMA = 6.0
_TINY, _SMALL = 1e-15, 1e-9  # BLEU: added to numerators and denominators


def cider_d(
    xp: ModuleType,
    captions: Int[ArrayLike, "*N T"],
    lengths: Int[ArrayLike, "*N"],
    idf: Float[ArrayLike, "*N T 4"],
    counts: Float[ArrayLike, "*N R T 4"],
    reference_norms: Float[ArrayLike, "*N R 4"],
    reference_lengths: Int[ArrayLike, "*N R"],
) -> Float[ArrayLike, "*N"]:
    """Return CIDEr-D of captions; float64 on the host, float32 on a device.

    Args:
        xp: `numpy` or `jax.numpy`.
        captions: words of N captions.
        lengths: numbers of words.
        idf: inverse document frequencies of their n-grams.
        counts: `occurrences` of their n-grams in each reference of their image.
        reference_norms: `norms` of the references.
        reference_lengths: words of the references; negative for missing references.

    Returns:
        CIDEr-D on the scale 0 to 10.
    """
    repeats = own_counts(xp, captions, lengths, counts.dtype)
    present = reference_lengths >= 0
    weights = counts * idf[..., None, :, :]
    clipped = xp.minimum((repeats * idf)[..., None, :, :], weights)
    # An n-gram that occurs tf times stands at tf places: each contributes its share.
    share = clipped * weights / xp.maximum(repeats, 1)[..., None, :, :]
    products = xp.sum(share, axis=-2)
    scale = norms(xp, repeats, idf)[..., None, :] * reference_norms
    similar = products / xp.where(scale > 0, scale, 1)
    bigrams = xp.maximum(lengths - 1, 0)[..., None] - xp.maximum(reference_lengths - 1, 0)
    penalty = xp.exp(-(bigrams.astype(counts.dtype) ** 2) / (2 * SIGMA**2))
    scores = xp.where(present, xp.mean(similar, axis=-1) * penalty, 0)
    references = xp.maximum(xp.sum(present, axis=-1), 1)
    return xp.sum(scores, axis=-1) / references * 10


def norms(
    xp: ModuleType, repeats: Float[ArrayLike, "*N T 4"], idf: Float[ArrayLike, "*N T 4"]
) -> Float[ArrayLike, "*N 4"]:
    """Return the lengths of the vectors tf * idf of each order.

    Args:
        xp: the array module.
        repeats: `own_counts` of the captions.
        idf: inverse document frequencies of their n-grams.
    """
    return xp.sqrt(xp.sum(repeats * idf**2, axis=-2))


def bleu(
    xp: ModuleType,
    captions: Int[ArrayLike, "*N T"],
    lengths: Int[ArrayLike, "*N"],
    counts: Float[ArrayLike, "*N R T 4"],
    reference_lengths: Int[ArrayLike, "*N R"],
) -> Float[ArrayLike, "*N 4"]:
    """Return BLEU of captions; float64 on the host, float32 on a device.

    Args:
        xp: `numpy` or `jax.numpy`.
        captions: words of N captions.
        lengths: numbers of words.
        counts: `occurrences` of their n-grams in each reference of their image.
        reference_lengths: words of the references; negative for missing references.

    Returns:
        BLEU-1 to 4, 0 to 1.
    """
    repeats = own_counts(xp, captions, lengths, counts.dtype)
    allowed = xp.max(counts, axis=-3)
    correct = xp.sum(xp.minimum(repeats, allowed) / xp.maximum(repeats, 1), axis=-2)
    orders = np.arange(1, repeats.shape[-1] + 1, dtype=np.int32)
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
    """Return the reference length nearest to each caption's; the smaller one of a tie."""
    far = np.int32(1 << 14)
    distance = xp.abs(reference_lengths - lengths[..., None])
    # One number orders by distance, then by length.
    keys = xp.where(reference_lengths >= 0, distance * far + reference_lengths, far * far)
    return xp.min(keys, axis=-1) % far
