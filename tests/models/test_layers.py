"""The layers that all models share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from sparsecap_jax.models.layers import Dropout


class Dropped(nn.Module):
    """A ReLU, dropped: by Flax, or by the layer's own form."""

    rate: float
    plain: bool

    @nn.compact
    def __call__(self, inputs, deterministic):
        if self.plain:
            return nn.Dropout(self.rate, name="drop")(nn.relu(inputs), deterministic)
        return Dropout(self.rate, name="drop").relu(inputs, deterministic)


@pytest.mark.parametrize(
    ("rate", "deterministic"), [(0.3, False), (0.5, False), (0.3, True), (0.0, False)]
)
def test_a_dropped_relu_equals_dropout_of_a_relu_and_so_does_its_gradient(rate, deterministic):
    inputs = jax.random.normal(jax.random.key(0), (64, 48)).at[0].set(0.0)
    rngs, pushed = {"dropout": jax.random.key(1)}, jax.random.normal(jax.random.key(2), (64, 48))
    results = []
    for plain in (True, False):
        module = Dropped(rate, plain)

        @jax.jit
        def both(inputs, module=module):
            value, pull = jax.vjp(lambda x: module.apply({}, x, deterministic, rngs=rngs), inputs)
            return value, *pull(pushed)

        results.append(both(inputs))
    for expected, found in zip(*results, strict=True):
        np.testing.assert_array_equal(found, expected)
    value = results[0][0]
    share = float(jnp.mean(value[1:] > 0))
    assert abs(share - (1 - rate * (not deterministic)) / 2) < 0.04
