"""Recurrent cells as in TensorFlow: joint matrices, one bias, and the GRU."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from sparsecap_jax.models.precision import matmul


class CellWeights(nn.Module):
    """One matrix of a recurrent cell, split into its input and its state part, and its bias.

    The initialisation is Glorot's uniform over the joint matrix `[I + H, features]`.

    Attributes:
        inputs: width I of the input.
        hidden: width H of the state.
        features: output width, such as 4H.
        bias: initial values of the bias, one per H outputs.
    """

    inputs: int
    hidden: int
    features: int
    bias: tuple[float, ...]

    @nn.compact
    def __call__(self) -> tuple[Array, Array, Array]:
        """Return `kernel_ih [I, features]`, `kernel_hh [H, features]` and `bias [features]`."""
        bound = math.sqrt(6.0 / (self.inputs + self.hidden + self.features))

        def uniform(key, shape):
            return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

        def constant(_key, shape):
            return jnp.repeat(jnp.asarray(self.bias, jnp.float32), self.hidden).reshape(shape)

        kernel_ih = self.param("kernel_ih", uniform, (self.inputs, self.features))
        kernel_hh = self.param("kernel_hh", uniform, (self.hidden, self.features))
        return kernel_ih, kernel_hh, self.param("bias", constant, (self.features,))


def gru_state(
    inputs: Float[Array, "... G"],
    hidden: Float[Array, "... H"],
    gates_hh: Float[Array, "H 2*H"],
    candidate_hh: Float[Array, "H H"],
    compute_dtype: str = "float32",
) -> Float[Array, "... H"]:
    """Advance a GRU by one step; the reset gate acts on the state before its projection.

    Args:
        inputs: `[..., 3H]`, the input's share of reset gate, update gate and candidate.
        hidden: `[..., H]`, the state.
        gates_hh: state's kernel of both gates.
        candidate_hh: state's kernel of the candidate.
        compute_dtype: type of the operands of products.

    Returns:
        The new state `[..., H]`.

    Reference: Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", EMNLP 2014,
    with TensorFlow's sense of the update gate: 1 keeps the state.
    """
    gates, candidate = jnp.split(inputs, [gates_hh.shape[-1]], axis=-1)
    gates = gates + matmul(hidden, gates_hh, compute_dtype)
    reset, update = jnp.split(jax.nn.sigmoid(gates), 2, axis=-1)
    candidate = jnp.tanh(candidate + matmul(reset * hidden, candidate_hh, compute_dtype))
    return update * hidden + (1.0 - update) * candidate
