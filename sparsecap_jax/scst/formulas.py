"""CIDEr-D and BLEU-1 to 4 of single captions against the references of their images.

CIDEr-D: Vedantam et al., "CIDEr: Consensus-based Image Description Evaluation", CVPR 2015, arXiv
1411.5726; the numbers are those of the reference (`scst/cider/pyciderevalcap/ciderD`).

    CIDEr-D = 10 / (4 R) * sum over references r and n = 1..4 of
        exp(-(b(h) - b(r))^2 / (2 * 6^2)) * sum_g min(v_h(g), v_r(g)) * v_r(g) / (|v_h| |v_r|)

with v(g) = tf(g) * idf(g) over the n-grams g of one order, and b the number of bigrams.

BLEU, smoothed and with the closest reference's length: Papineni et al., "BLEU: a Method for
Automatic Evaluation of Machine Translation", ACL 2002; the numbers are those of the COCO toolkit
and the reference (`pycocoevalcap/bleu/bleu_scorer.py`).

Captions are rows of numbers of words; n-grams are counted as sums of equalities. Functions take the
array module `xp`, `numpy` or `jax.numpy`, so that scorers on the host and on a device are the same
formulas.
"""

from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from sparsecap_jax.scst.document_frequency import MAX_N
from sparsecap_jax.types import ArrayLike

SIGMA = 6.0
_TINY, _SMALL = 1e-15, 1e-9  # BLEU: added to numerators and denominators


def scores(
    xp: ModuleType,
    captions: Int[ArrayLike, "*N T"],
    lengths: Int[ArrayLike, "*N"],
    idf: Float[ArrayLike, "*N T 4"],
    references: Int[ArrayLike, "*#N R L"],
    reference_lengths: Int[ArrayLike, "*#N R"],
    reference_norms: Float[ArrayLike, "*#N R 4"],
) -> tuple[Float[ArrayLike, "*N"], Float[ArrayLike, "*N 4"]]:
    """Return CIDEr-D (0 to 10) and BLEU-1 to 4 (0 to 1) of captions, in the type of `idf`.

    Args:
        xp: `numpy` or `jax.numpy`.
        captions: words of N captions.
        lengths: numbers of words.
        idf: inverse document frequencies of their n-grams.
        references: words of the references of their images.
        reference_lengths: numbers of words; negative for missing references.
        reference_norms: `norms` of the references.
    """
    counts = occurrences(
        xp, captions[..., None, :], lengths[..., None], references, reference_lengths, idf.dtype
    )
    repeats = own_counts(xp, captions, lengths, idf.dtype)
    cider_d = _cider_d(xp, lengths, idf, repeats, counts, reference_lengths, reference_norms)
    return cider_d, _bleu(xp, lengths, repeats, counts, reference_lengths)


def _cider_d(xp, lengths, idf, repeats, counts, reference_lengths, reference_norms):
    present = reference_lengths >= 0
    weights = counts * idf[..., None, :, :]
    clipped = xp.minimum((repeats * idf)[..., None, :, :], weights)
    # An n-gram that occurs tf times stands at tf places: each contributes its share.
    share = clipped * weights / xp.maximum(repeats, 1)[..., None, :, :]
    scale = norms(xp, repeats, idf)[..., None, :] * reference_norms
    similar = xp.sum(share, axis=-2) / xp.where(scale > 0, scale, 1)
    bigrams = xp.maximum(lengths - 1, 0)[..., None] - xp.maximum(reference_lengths - 1, 0)
    penalty = xp.exp(-(bigrams.astype(counts.dtype) ** 2) / (2 * SIGMA**2))
    similar = xp.where(present, xp.mean(similar, axis=-1) * penalty, 0)
    return xp.sum(similar, axis=-1) / xp.maximum(xp.sum(present, axis=-1), 1) * 10


def _bleu(xp, lengths, repeats, counts, reference_lengths):
    tiny, small = counts.dtype.type(_TINY), counts.dtype.type(_SMALL)
    allowed = xp.max(counts, axis=-3)
    correct = xp.sum(xp.minimum(repeats, allowed) / xp.maximum(repeats, 1), axis=-2)
    orders = np.arange(1, MAX_N + 1, dtype=np.int32)
    guesses = xp.maximum(lengths[..., None] - orders + 1, 0).astype(counts.dtype)
    # Products of four precisions would leave the range of float32: their logs are summed.
    logs = xp.log(correct + tiny) - xp.log(guesses + small)
    precisions = xp.exp(xp.cumsum(logs, axis=-1) / orders)
    # The nearest reference length, the smaller one of a tie: a number orders by distance, then by
    # length.
    far = np.int32(1 << 14)
    distance = xp.abs(reference_lengths - lengths[..., None])
    keys = xp.where(reference_lengths >= 0, distance * far + reference_lengths, far * far)
    closest = (xp.min(keys, axis=-1) % far).astype(counts.dtype)
    ratio = (lengths.astype(counts.dtype) + tiny) / (closest + small)
    brevity = xp.where(ratio < 1, xp.exp(xp.minimum(1 - 1 / ratio, 0)), 1)
    return precisions * brevity[..., None]


def norms(
    xp: ModuleType, repeats: Float[ArrayLike, "*N T 4"], idf: Float[ArrayLike, "*N T 4"]
) -> Float[ArrayLike, "*N 4"]:
    """Return the lengths of the vectors tf * idf of each order; `repeats` are `own_counts`."""
    return xp.sqrt(xp.sum(repeats * idf**2, axis=-2))


def occurrences(
    xp: ModuleType,
    captions: Int[ArrayLike, "*#N T"],
    lengths: Int[ArrayLike, "*#N"],
    others: Int[ArrayLike, "*#N L"],
    other_lengths: Int[ArrayLike, "*#N"],
    dtype: Any,
) -> Float[ArrayLike, "*N T 4"]:
    """Count the n-grams of captions in other captions, paired with them by broadcasting.

    Entry `[..., t, n - 1]` of the result counts the n words of a caption from t on; 0 where they do
    not fit. Words beyond the lengths do not matter.
    """

    def words(rows, counts):
        return xp.arange(rows.shape[-1], dtype=xp.int32) < counts[..., None]

    # The searched captions come first: sums over the leading axis are the fast ones.
    present = xp.moveaxis(words(others, other_lengths), -1, 0)[..., None]
    others = xp.moveaxis(others, -1, 0)[..., None]
    run = equal = (captions == others) & words(captions, lengths) & present
    places, columns = captions.shape[-1], []
    for n in range(MAX_N):
        if n:
            run = run[:-1, ..., :-1] & equal[n:, ..., n:]
        count = xp.sum(run, axis=0, dtype=xp.int16).astype(dtype)
        zeros = xp.zeros((*count.shape[:-1], min(n, places)), dtype)
        columns.append(xp.concatenate([count, zeros], axis=-1)[..., :places])
    return xp.stack(columns, axis=-1)


def own_counts(
    xp: ModuleType, captions: Int[ArrayLike, "*N T"], lengths: Int[ArrayLike, "*N"], dtype: Any
) -> Float[ArrayLike, "*N T 4"]:
    """Count the n-grams of captions in the caption itself; 0 where they do not fit."""
    return occurrences(xp, captions, lengths, captions, lengths, dtype)
