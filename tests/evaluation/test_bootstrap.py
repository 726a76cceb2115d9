"""Bootstrap intervals against the binomial and the normal distribution."""

import numpy as np

from sparsecap_jax.evaluation.comparison import interval, resampled


def bootstrap_interval(values, level=0.95):
    drawn = resampled({"CIDEr": np.array(values)[:, None]})["CIDEr"]
    return interval(drawn, level)


def test_of_coins_is_a_binomial_quantile():
    # The mean of 100 draws from 30 ones and 70 zeros: Binomial(100, 0.3) / 100, whose 2.5% and
    # 97.5% quantiles are 21 and 39.
    low, high = bootstrap_interval([1.0] * 30 + [0.0] * 70)
    assert abs(low - 0.21) <= 0.01 and abs(high - 0.39) <= 0.01


def test_of_many_values_is_the_normal_one():
    values = np.random.default_rng(1).exponential(size=2000)
    low, high = bootstrap_interval(values.tolist(), level=0.9)
    spread = 1.645 * values.std() / np.sqrt(2000)
    np.testing.assert_allclose([low, high], [values.mean() - spread, values.mean() + spread], 0.02)


def test_of_one_image_is_its_score():
    assert bootstrap_interval([0.7]) == [0.7, 0.7]
