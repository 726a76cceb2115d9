"""The precision policy of all models.

Parameters, their gradients and the optimizer's state are float32, and so are residual streams,
recurrent states, attention caches, softmaxes, norms, log-probs and losses. A model's
`compute_dtype` ("float32" or "bfloat16") is the type of the operands of its matrix products; their
sums are float32 either way. Operands are cast where they are multiplied, inside loops over time,
so that the gradients of weights are summed over time in float32.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

from sparsecap_jax.types import ArrayLike


def matmul(
    inputs: Float[ArrayLike, "..."], kernel: Float[ArrayLike, "..."], compute_dtype: str
) -> Float[Array, "..."]:
    """Return `inputs @ kernel` of operands in `compute_dtype`, summed and returned in float32.

    So are the two products of its gradient, whose operands are the gradient of the result and the
    other factor; by itself, autodiff would multiply them in float32. Forward-mode derivatives
    need "float32".
    """
    if compute_dtype == "float32":
        return jnp.matmul(jnp.asarray(inputs, compute_dtype), jnp.asarray(kernel, compute_dtype))
    return _rounded_matmul(jnp.asarray(inputs), jnp.asarray(kernel), compute_dtype)


def dot_general(compute_dtype: str) -> Callable[..., Array]:
    """Return the same product for `nn.Dense`, as its `dot_general`."""

    def product(lhs, rhs, *_unused, **_options) -> Array:
        return matmul(lhs, rhs, compute_dtype)

    return product


def _product(lhs: Array, rhs: Array) -> Array:
    return jnp.matmul(lhs, rhs, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rounded_matmul(inputs, kernel, compute_dtype):
    return _product(inputs.astype(compute_dtype), kernel.astype(compute_dtype))


def _forward(inputs, kernel, compute_dtype):
    factors = inputs.astype(compute_dtype), kernel.astype(compute_dtype)
    like = inputs[:0], kernel[:0]  # only their types
    return _product(*factors), (factors, like)


def _backward(compute_dtype, saved, gradient):
    (inputs, kernel), like = saved
    gradient = gradient.astype(compute_dtype)
    to_inputs = _product(gradient, _transposed(kernel))
    if kernel.ndim == 2:  # all rows in one product, not one for each row of a batch
        rows = inputs.reshape(-1, inputs.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
        to_kernel = _product(_transposed(rows[0]), rows[1])
    else:
        to_kernel = _product(_transposed(inputs), gradient)
    sums = _sum_to(to_inputs, inputs.shape), _sum_to(to_kernel, kernel.shape)
    return tuple(total.astype(one.dtype) for total, one in zip(sums, like, strict=True))


def _transposed(values: Array) -> Array:
    """Return the transpose, on a single CPU laid out row by row.

    XLA's CPU library multiplies in bfloat16 only what lies so. A transpose by itself is a view,
    which is multiplied in float32 and takes twice as long. A layout that is asked for gathers
    arrays that lie on several devices, and is therefore not asked for there.
    """
    if jax.device_count() > 1 or jax.default_backend() != "cpu":
        return values.mT
    return with_layout_constraint(values.mT, Layout(tuple(range(values.ndim))))


def _sum_to(values: Array, shape: tuple[int, ...]) -> Array:
    """Add up over axes along which `shape` was broadcast."""
    values = values.sum(tuple(range(values.ndim - len(shape))))
    pairs = enumerate(zip(values.shape, shape, strict=True))
    return values.sum(tuple(i for i, (wide, one) in pairs if wide != one), keepdims=True)


_rounded_matmul.defvjp(_forward, _backward)
