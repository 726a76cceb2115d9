import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import random as library
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sparsecap_jax.pruning.supermask import (
    bernoulli,
    kept_fraction,
    random_bits,
    rounded,
    sample_all,
    threefry,
)


def sigmoid(z):
    return 1.0 / (1.0 + np.exp(-np.asarray(z, np.float64)))


@pytest.fixture
def case(golden):
    return golden("losses_pruning/samplers.npz")


def test_threefry_equals_the_library():
    key = jnp.array([0x13198A2E, 0x03707344], jnp.uint32)
    low, high = jax.random.bits(jax.random.key(1), (2, 1000), jnp.uint32)
    ours = jnp.concatenate(threefry(key, low, high))
    theirs = library.threefry_2x32((key[0], key[1]), jnp.concatenate([low, high]))
    np.testing.assert_array_equal(ours, theirs)


def test_threefry_known_answer():
    # Random123's kat_vectors, threefry2x32 with 20 rounds: all ones.
    ones = jnp.full(2, 0xFFFFFFFF, jnp.uint32)
    x, y = threefry(ones, ones[:1], ones[:1])
    assert (int(x[0]), int(y[0])) == (0x1CB996FC, 0xBB002BE7)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 1001])
def test_bits_of_any_size(size):
    (bits,) = random_bits(jax.random.key(0), [size])
    assert bits.shape == (size,)
    assert bits.dtype == jnp.uint16


@pytest.mark.parametrize("sizes", [[1], [3, 0, 1], [10, 2, 30, 5], [7, 100, 1, 1, 4]])
def test_bits_are_the_halves_of_hashed_counters(sizes):
    rng, quarter = jax.random.key(9), -(-sum(sizes) // 4)
    key = jax.random.bits(rng, (2,), jnp.uint32)
    counters = jnp.arange(quarter, dtype=jnp.uint32)
    hashed = library.threefry_2x32((key[0], key[1]), jnp.stack([counters, 0 * counters]))
    halves = [np.asarray(word) >> shift & 0xFFFF for word in hashed for shift in (0, 16)]
    expected = np.split(np.concatenate(halves)[: sum(sizes)], np.cumsum(sizes)[:-1])
    for bits, numbers in zip(random_bits(rng, sizes), expected, strict=True):
        np.testing.assert_array_equal(bits, numbers)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_bits_are_uniform(impl):
    bits = np.asarray(random_bits(jax.random.key(3, impl=impl), [1 << 18])[0])
    counts = np.bincount(bits >> 8, minlength=256)
    # Chi-squared with 255 degrees of freedom has mean 255 and standard deviation 22.6.
    assert abs(np.sum((counts - 1024.0) ** 2 / 1024.0) - 255) < 5 * 22.6
    each = [(bits >> i & 1).mean() for i in range(16)]
    np.testing.assert_allclose(each, 0.5, atol=5 * 0.5 / 512)


def test_neighbours_are_independent():
    bits = np.asarray(random_bits(jax.random.key(4), [1 << 18])[0]) / 65536.0 - 0.5
    quarter = len(bits) // 4
    for lag in (1, 2, 3, 4, 5, quarter, 2 * quarter, 3 * quarter):
        product = bits[lag:] * bits[:-lag]
        assert abs(product.mean()) < 5 / 12 / np.sqrt(len(product)), lag


@pytest.mark.parametrize("bypass", [False, True])
def test_rounding_equals_the_reference(case, bypass):
    out, pull = jax.vjp(lambda z: rounded(z, bypass), jnp.asarray(case["logits"]))
    np.testing.assert_array_equal(out, case[f"round/bypass_{bypass}/out"])
    (grad,) = pull(jnp.asarray(case["grad_output"]))
    np.testing.assert_allclose(grad, case[f"round/bypass_{bypass}/grad"], rtol=1e-5)


@pytest.mark.parametrize("bypass", [False, True])
def test_bernoulli_gradient_equals_the_reference(case, bypass):
    (bits,) = random_bits(jax.random.key(0), [case["logits"].size])
    out, pull = jax.vjp(lambda z: bernoulli(z, bits, bypass), jnp.asarray(case["logits"]))
    assert set(np.unique(out)) <= {0.0, 1.0}
    (grad,) = pull(jnp.asarray(case["grad_output"]))
    np.testing.assert_allclose(grad, case[f"bernoulli/bypass_{bypass}/grad"], rtol=1e-5)


def test_bernoulli_means(case):
    logits = case["bernoulli/mean_logits"]
    draws = jnp.broadcast_to(jnp.asarray(logits), (20_000, logits.size))
    (masks,) = sample_all([draws], jax.random.key(5), False)
    p = sigmoid(logits)
    deviation = np.sqrt(p * (1 - p) / 20_000)
    mean = np.asarray(masks, np.float64).mean(0)
    np.testing.assert_array_less(np.abs(mean - p), 4.5 * deviation)
    theirs = case["bernoulli/mean_of_20000"]
    np.testing.assert_array_less(np.abs(mean - theirs), 4.5 * np.sqrt(2) * deviation)


def test_probabilities_of_0_and_1_are_certain():
    logits = jnp.array([[60.0, -60.0]] * 5000, jnp.float32)
    (masks,) = sample_all([logits], jax.random.key(0), False)
    np.testing.assert_array_equal(masks, [[1.0, 0.0]] * 5000)


def test_straight_through_equals_the_slope_of_the_expected_mask():
    rng = np.random.default_rng(0)
    logits, weights = rng.normal(0, 2, (2, 6, 5))

    def drawn(z):
        (mask,) = sample_all([z], jax.random.key(0), False)
        return jnp.sum(mask * jnp.asarray(weights, jnp.float32))

    grad = jax.grad(drawn)(jnp.asarray(logits, jnp.float32))
    step = 1e-5
    slope = weights * (sigmoid(logits + step) - sigmoid(logits - step)) / (2 * step)
    np.testing.assert_allclose(grad, slope, rtol=1e-5, atol=1e-6)


def test_kept_fraction_equals_the_mean_of_rounded_masks():
    keys = jax.random.split(jax.random.key(0), 2)
    logits = [jax.random.normal(keys[0], (5, 7)), jax.random.normal(keys[1], (3, 2))]

    def slow(zs):
        return jnp.concatenate([rounded(z, False).reshape(-1) for z in zs]).mean()

    value, grads = jax.value_and_grad(lambda zs: kept_fraction(zs, False))(logits)
    expected, expected_grads = jax.value_and_grad(slow)(logits)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), grads, expected_grads)


def test_kept_fraction_counts_no_zeros():
    logits = [jnp.array([[0.0, -0.0, 1e-30, -1e-30]]), jnp.array([5.0, jnp.inf, -jnp.inf, -5.0])]
    assert kept_fraction(logits, False) == 3 / 8


def test_draws_do_not_depend_on_devices():
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    logits = [jnp.zeros((16, 5), jnp.float32), jnp.ones((8, 3), jnp.float32)]
    draw = jax.jit(lambda zs, rng: sample_all(zs, rng, False))
    single = draw(logits, jax.random.key(7))
    for spec in (PartitionSpec(), PartitionSpec("data")):
        placed = jax.device_put(logits, NamedSharding(mesh, spec))
        for one, other in zip(single, draw(placed, jax.random.key(7)), strict=True):
            np.testing.assert_array_equal(one, other)
