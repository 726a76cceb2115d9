"""CIDEr-D of captions against the references of their images.

Vedantam et al., "CIDEr: Consensus-based Image Description Evaluation", CVPR 2015, arXiv 1411.5726;
the numbers are those of the reference (`scst/cider/pyciderevalcap/ciderD/ciderD_scorer.py`).

    CIDEr-D = 10 / (4 R) * sum over references r and n = 1..4 of
        exp(-(b(h) - b(r))^2 / (2 * 6^2)) * sum_g min(v_h(g), v_r(g)) * v_r(g) / (|v_h| |v_r|)

with v(g) = tf(g) * idf(g) over the n-grams g of one order, and b the number of bigrams.
"""

from types import ModuleType

from jaxtyping import Float, Int

from sparsecap_jax.scst.ngrams import own_counts
from sparsecap_jax.types import ArrayLike

SIGMA = 6.0


def cider_d(
    xp: ModuleType,
    captions: Int[ArrayLike, "*N T"],
    lengths: Int[ArrayLike, "*N"],
    idf: Float[ArrayLike, "*N T 4"],
    counts: Float[ArrayLike, "*N R T 4"],
    reference_norms: Float[ArrayLike, "*N R 4"],
    reference_lengths: Int[ArrayLike, "*N R"],
) -> Float[ArrayLike, "*N"]:
    """Score captions; float64 on the host, float32 on a device.

    Args:
        xp: `numpy` or `jax.numpy`.
        captions: words of N captions.
        lengths: numbers of words.
        idf: inverse document frequencies of their n-grams.
        counts: `occurrences` of their n-grams in each reference of their image.
        reference_norms: `norms` of the references.
        reference_lengths: words of the references; negative for references that are not there.

    Returns:
        CIDEr-D on the scale 0 to 10.
    """
    own = own_counts(xp, captions, lengths, counts.dtype)
    there = reference_lengths >= 0
    weights = counts * idf[..., None, :, :]
    clipped = xp.minimum((own * idf)[..., None, :, :], weights)
    # An n-gram that occurs tf times stands at tf places: each contributes its share.
    share = clipped * weights / xp.maximum(own, 1)[..., None, :, :]
    products = xp.sum(share, axis=-2)
    scale = norms(xp, own, idf)[..., None, :] * reference_norms
    similar = products / xp.where(scale > 0, scale, 1)
    bigrams = xp.maximum(lengths - 1, 0)[..., None] - xp.maximum(reference_lengths - 1, 0)
    penalty = xp.exp(-(bigrams.astype(counts.dtype) ** 2) / (2 * SIGMA**2))
    scores = xp.where(there, xp.mean(similar, axis=-1) * penalty, 0)
    references = xp.maximum(xp.sum(there, axis=-1), 1)
    return xp.sum(scores, axis=-1) / references * 10


def norms(
    xp: ModuleType, own: Float[ArrayLike, "*N T 4"], idf: Float[ArrayLike, "*N T 4"]
) -> Float[ArrayLike, "*N 4"]:
    """Lengths of the vectors tf * idf of each order.

    Args:
        xp: the array module.
        own: `own_counts` of the captions.
        idf: inverse document frequencies of their n-grams.
    """
    return xp.sqrt(xp.sum(own * idf**2, axis=-2))
