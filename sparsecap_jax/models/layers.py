"""Linear maps and the LSTM as in PyTorch; recurrent cells as in TensorFlow.

PyTorch's tensors are kept one for one (both LSTM biases, separate projections) in Flax's layout,
kernels `[in, out]`, so that per-tensor pruning and exact export hold.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from sparsecap_jax.models.precision import matmul

# Maps a layer's number of inputs to an initializer.
FanInInit = Callable[[int], Callable]


def torch_uniform(fan_in: int) -> Callable[..., Array]:
    """Return PyTorch's initializer of Linear and LSTM, U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = 1.0 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def xavier_uniform(fan_in: int) -> Callable[..., Array]:
    """Return Glorot's uniform initializer, which finds the number of inputs itself."""
    return nn.initializers.xavier_uniform()


class Linear(nn.Module):
    """Affine map `[..., in] -> [..., features]`, by default with PyTorch's initialisation.

    Attributes:
        features: output width.
        dtype: type of the operands of the product, see `precision`.
        kernel_init, bias_init: initializers of kernel and bias for a number of inputs.
    """

    features: int
    dtype: str = "float32"
    kernel_init: FanInInit = torch_uniform
    bias_init: FanInInit = torch_uniform

    @nn.compact
    def __call__(self, inputs: Float[Array, "... I"]) -> Float[Array, "... O"]:
        """Return `inputs @ kernel + bias`."""
        fan_in = inputs.shape[-1]
        kernel = self.param("kernel", self.kernel_init(fan_in), (fan_in, self.features))
        bias = self.param("bias", self.bias_init(fan_in), (self.features,))
        return matmul(inputs, kernel, self.dtype) + bias


class Dropout(nn.Dropout):
    """Flax's dropout, which also drops values of a ReLU with less memory."""

    def relu(self, inputs: Float[Array, "*N"], deterministic: bool) -> Float[Array, "*N"]:
        """Return the dropped ReLU of `inputs`, with the draws that `__call__` makes."""
        if deterministic or not self.rate:
            return jax.nn.relu(inputs)
        keep = 1.0 - self.rate
        kept = jax.random.bernoulli(self.make_rng(self.rng_collection), keep, inputs.shape)
        return _dropped_relu(inputs, kept, keep)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _dropped_relu(inputs: Array, kept: Array, keep: float) -> Array:
    """Return the ReLU where `kept`, divided by `keep`.

    Its derivative is read off its result, which the next layer keeps for its own gradient. By
    default the inputs and, on a CPU, eight bytes of random bits per number are kept as well.
    """
    return jnp.where(kept, jax.nn.relu(inputs) / keep, 0.0)


@_dropped_relu.defjvp
def _dropped_relu_jvp(keep, primals, tangents):
    result = _dropped_relu(*primals, keep)
    return result, jnp.where(result > 0, tangents[0] / keep, 0.0)


class LSTMWeights(nn.Module):
    """The four tensors of one PyTorch LSTM cell, gate order i, f, g, o.

    The cell's arithmetic is `lstm_state`; keeping the weights apart from it lets a model hoist
    the input projection out of the recurrence.

    Attributes:
        inputs: width I of the input.
        hidden: width H of the state.
    """

    inputs: int
    hidden: int

    @nn.compact
    def __call__(self) -> tuple[Array, Array, Array]:
        """Return `kernel_ih [I, 4H]`, `kernel_hh [H, 4H]` and the sum of both biases `[4H]`."""
        init = torch_uniform(self.hidden)
        kernel_ih = self.param("kernel_ih", init, (self.inputs, 4 * self.hidden))
        kernel_hh = self.param("kernel_hh", init, (self.hidden, 4 * self.hidden))
        bias_ih = self.param("bias_ih", init, (4 * self.hidden,))
        bias_hh = self.param("bias_hh", init, (4 * self.hidden,))
        return jnp.asarray(kernel_ih), jnp.asarray(kernel_hh), jnp.asarray(bias_ih + bias_hh)


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
    inputs: Float[Array, "... G"], hidden: Float[Array, "... H"], multiply: Callable[..., Array]
) -> Float[Array, "... H"]:
    """Advance a GRU by one step; the reset gate acts on the state before its projection.

    Args:
        inputs: `[..., 3H]`, the input's share of reset gate, update gate and candidate.
        hidden: the state.
        multiply: `multiply(start, state=values)` adds the values' product with the kernel
            `[H, 2H]` of both gates to `start`, `multiply(start, candidate=values)` that with the
            kernel `[H, H]` of the candidate.

    Reference: Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", EMNLP 2014,
    with TensorFlow's sense of the update gate: 1 keeps the state.
    """
    gates, candidate = jnp.split(inputs, [2 * hidden.shape[-1]], axis=-1)
    gates = jax.nn.sigmoid(multiply(gates, state=hidden))
    reset, update = jnp.split(gates, 2, axis=-1)
    candidate = jnp.tanh(multiply(candidate, candidate=reset * hidden))
    return update * hidden + (1.0 - update) * candidate
