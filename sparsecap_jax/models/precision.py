"""The precision policy of all models.

Parameters, their gradients and the optimizer's state are float32, and so are residual streams,
recurrent states, attention caches, softmaxes, norms, log-probs and losses. A model's
`compute_dtype` ("float32" or "bfloat16") is the type of the operands of its matrix products; their
sums are float32 either way. Operands are cast where they are multiplied, inside loops over time,
so that the gradients of weights are summed over time in float32.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sparsecap_jax.types import ArrayLike


def matmul(
    inputs: Float[ArrayLike, "..."], kernel: Float[ArrayLike, "..."], compute_dtype: str
) -> Float[Array, "..."]:
    """Return the matrix product of operands in `compute_dtype`, summed and returned in float32."""
    operands = jnp.asarray(inputs, compute_dtype), jnp.asarray(kernel, compute_dtype)
    return jnp.matmul(*operands, preferred_element_type=jnp.float32)


def dot_general(compute_dtype: str) -> Callable[..., Array]:
    """Return the same product for layers of Flax, as their `dot_general`."""

    def product(lhs, rhs, dimension_numbers, **unused) -> Array:
        operands = lhs.astype(compute_dtype), rhs.astype(compute_dtype)
        return jax.lax.dot_general(*operands, dimension_numbers, preferred_element_type=jnp.float32)

    return product
