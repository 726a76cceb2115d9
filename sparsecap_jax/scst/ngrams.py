"""Counts of n-grams in short captions as sums of equalities, for NumPy and for JAX alike.

Captions are rows of numbers of words. Functions take the array module `xp`, `numpy` or
`jax.numpy`, so that scorers on the host and on a device are the same formulas.
"""

from types import ModuleType
from typing import Any

from jaxtyping import Bool, Float, Int

from sparsecap_jax.scst.document_frequency import MAX_N
from sparsecap_jax.types import ArrayLike


def occurrences(
    xp: ModuleType,
    captions: Int[ArrayLike, "*#N T"],
    lengths: Int[ArrayLike, "*#N"],
    others: Int[ArrayLike, "*#N L"],
    other_lengths: Int[ArrayLike, "*#N"],
    dtype: Any,
) -> Float[ArrayLike, "*N T 4"]:
    """Count the n-grams of captions in other captions.

    Args:
        xp: the array module.
        captions: words; what lies beyond `lengths` does not matter.
        lengths: numbers of words.
        others: captions to search, paired with `captions` by broadcasting.
        other_lengths: their numbers of words.
        dtype: of the result.

    Returns:
        Entry `[..., t, n - 1]` counts the n words of a caption from t on; 0 where they do not fit.
    """
    # The searched captions come first: sums over the leading axis are the fast ones.
    present = xp.moveaxis(within(xp, others, other_lengths), -1, 0)[..., None]
    others = xp.moveaxis(others, -1, 0)[..., None]
    equal = (captions == others) & within(xp, captions, lengths) & present
    places, found, run = captions.shape[-1], [], equal
    for n in range(MAX_N):
        if n:
            run = run[:-1, ..., :-1] & equal[n:, ..., n:]
        count = xp.sum(run, axis=0, dtype=xp.int16).astype(dtype)
        zeros = xp.zeros((*count.shape[:-1], min(n, places)), dtype)
        found.append(xp.concatenate([count, zeros], axis=-1)[..., :places])
    return xp.stack(found, axis=-1)


def within(
    xp: ModuleType, captions: Int[ArrayLike, "*N T"], lengths: Int[ArrayLike, "*N"]
) -> Bool[ArrayLike, "*N T"]:
    """Return which places of captions hold words."""
    return xp.arange(captions.shape[-1], dtype=xp.int32) < lengths[..., None]


def own_counts(
    xp: ModuleType, captions: Int[ArrayLike, "*N T"], lengths: Int[ArrayLike, "*N"], dtype: Any
) -> Float[ArrayLike, "*N T 4"]:
    """Count the n-grams of captions in the caption itself; 0 where they do not fit."""
    return occurrences(xp, captions, lengths, captions, lengths, dtype)
