"""Recurrences whose weights get their gradients after the loop over words.

Autodiff adds a product of [inputs, rows] x [rows, outputs] to the gradient of every kernel in every
step. Here the loop hands out the inputs of the products and the gradients of their results, and one
product over the rows of all steps makes each kernel's gradient: the same sum in another order.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from sparsecap_jax.models.interface import scan_words
from sparsecap_jax.models.precision import matmul

Kernels = dict[str, Array]
Groups = tuple[tuple[str, ...], ...]
# `multiply(start, name=values, ...)`: `start`, plus the product of values with each kernel named.
Multiply = Callable[..., Array]


def multiply_by(kernels: Kernels, compute_dtype: str) -> Multiply:
    """Return `multiply` for these kernels `[I, O]`."""

    def multiply(start: Float[Array, "... O"], **inputs: Array) -> Float[Array, "... O"]:
        for name, values in inputs.items():
            start = start + matmul(values, kernels[name], compute_dtype)
        return start

    return multiply


def unroll(
    module: nn.Module,
    recur: Callable[..., tuple[Any, Array]],
    groups: Groups,
    *inputs: Any,
    places: Int[Array, " N"] | None,
    compute_dtype: str,
    remat: bool,
) -> Float[Array, "B K T H"]:
    """Return the outputs of `recur` for all words.

    Args:
        module: the bound model.
        recur: `(module, carry, words [B, K, G], multiply, kernels, context) -> (carry, [B, K, H])`.
        groups: names of the kernels that `recur` multiplies by, those of one call together; each
            call is made once a step, with values `[B, K, I]`.
        inputs: first carry, words `[B, K, T, G]`, kernels and context.
        places: places in the flattened `[B * K * T]` of the words that have gradients, and numbers
            beyond; None: all.
        compute_dtype: type of the operands of products.
        remat: whether the backward pass computes the steps again instead of keeping their parts.
    """
    carry, words, kernels, context = inputs
    late = {name: kernels[name] for group in groups for name in group}
    others = {name: kernel for name, kernel in kernels.items() if name not in late}

    def scan(step: Callable, broadcast: int) -> Callable:
        return scan_words(nn.remat(step, prevent_cse=False) if remat else step, broadcast)

    def plain(module, places, late, *inputs):
        def step(module, carry, words, late, others, context):
            return recur(module, carry, words, multiply_by(late, compute_dtype), others, context)

        carry, words, *rest = inputs
        return scan(step, 3)(module, carry, words, late, *rest)[1]

    def forward(module, places, late, *inputs):
        def tapped(module, taps, carry, words, *rest):
            step = _tapped(recur, late, compute_dtype)
            return scan(step, 2)(module, carry, (words, taps), *rest)[1]

        taps = {group: _zeros(inputs[1], late[group[0]]) for group in groups}
        hidden, pull_back, read = nn.vjp(tapped, module, taps, *inputs, has_aux=True)
        return hidden, (pull_back, read, places)

    def backward(saved, gradient):
        pull_back, read, places = saved
        params, taps, *rest = pull_back(gradient)
        late = {
            name: matmul(_words(read[name], places).T, _words(results, places), compute_dtype)
            for group, results in taps.items()
            for name in group
        }
        return params, None, late, *rest

    if not module.is_initializing():
        plain = nn.custom_vjp(plain, forward, backward)
    return plain(module, places, late, carry, words, others, context)


def _tapped(recur: Callable, late: Kernels, compute_dtype: str) -> Callable:
    """Return a step that adds `taps` to all products, and also returns what it multiplies."""

    def step(module, carry, inputs, others, context):
        words, taps = inputs
        read: dict[str, Array] = {}

        def multiply(start: Array, **inputs: Array) -> Array:
            read.update(inputs)
            return multiply_by(late, compute_dtype)(start + taps[tuple(inputs)], **inputs)

        carry, hidden = recur(module, carry, words, multiply, others, context)
        return carry, (hidden, read)

    return step


def _zeros(words: Float[Array, "B K T G"], kernel: Float[Array, "I O"]) -> Float[Array, "B K T O"]:
    return jnp.zeros((*words.shape[:3], kernel.shape[-1]), jnp.float32)


def _words(values: Float[Array, "B K T D"], places: Int[Array, " N"] | None) -> Float[Array, "N D"]:
    rows = values.reshape(-1, values.shape[-1])
    return rows if places is None else jnp.take(rows, places, axis=0, mode="fill", fill_value=0.0)
