"""Products of operands in bfloat16, and those of their gradients."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from sparsecap_jax.models.precision import matmul

SHAPES = {
    "weights": ((3, 5, 7), (7, 4)),
    "attention": ((2, 3, 5, 7), (2, 3, 7, 4)),
    "one matrix for several": ((2, 3, 5, 7), (2, 1, 7, 4)),
}


def rounded(values):
    return np.asarray(values).astype(ml_dtypes.bfloat16).astype(np.float64)


@pytest.fixture(params=SHAPES)
def factors(request):
    rng = np.random.default_rng(0)
    shapes = SHAPES[request.param]
    return [jnp.asarray(rng.normal(size=shape).astype(np.float32)) for shape in shapes]


@pytest.fixture(params=[1, 8])
def devices(request, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: request.param)
    return request.param


def pulled_back(factors, gradient):
    result, pull_back = jax.vjp(lambda *both: matmul(*both, "bfloat16"), *factors)
    return result, *pull_back(gradient)


def test_all_three_products_round_their_factors_alone(factors, devices):
    """In float64 from rounded factors; sums over broadcast axes are not rounded again."""
    inputs, kernel = map(rounded, factors)
    expected = inputs @ kernel
    weights = jnp.asarray(np.cos(np.arange(expected.size)).reshape(expected.shape), jnp.float32)
    found = pulled_back(factors, weights)
    gradient = rounded(weights)
    to_inputs = gradient @ kernel.swapaxes(-1, -2)
    if kernel.ndim == 2:
        to_kernel = np.einsum("abi,abo->io", inputs, gradient)
    else:
        to_kernel = inputs.swapaxes(-1, -2) @ gradient
        if kernel.shape[1] == 1:
            to_kernel = to_kernel.sum(axis=1, keepdims=True)
    for ours, theirs in zip(found, (expected, to_inputs, to_kernel), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_single_cpu_multiplies_transposes_that_lie_row_by_row(devices):
    """Several devices would gather arrays for the layout that is asked for."""
    factors = jnp.ones((5, 7)), jnp.ones((7, 4))
    jaxpr = str(jax.make_jaxpr(lambda *both: pulled_back(*both))(factors, jnp.ones((5, 4))))
    assert jaxpr.count("layout_constraint") == (2 if devices == 1 else 0)
    assert jaxpr.count("dot_general") == 3
