"""Confidence intervals of scores that are means over images."""

from collections.abc import Sequence

import numpy as np


def bootstrap_interval(
    values: Sequence[float], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean, images drawn with replacement.

    CIDEr's document frequencies stay those of the whole set, so that an image keeps its score.

    Args:
        values: the score of each image, at least one.
        level: share of resampled means that the interval holds.
        resamples: how many means are drawn.
        seed: of the draws.

    Returns:
        Its lower and upper end.
    """
    scores = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(scores), np.full(len(scores), 1 / len(scores)), resamples)
    means = drawn @ scores / len(scores)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
