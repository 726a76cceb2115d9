"""Pruning of one layer of a trained model, from the Gram matrix of its inputs.

A layer computes Y = X W from inputs X `[N, I]` with a kernel W `[I, O]`. All that these methods
need to know of the inputs is G = X^T X `[I, I]`; see `layer_inputs`.

    magnitude   removes the smallest |W_io|
    wanda       removes the smallest |W_io| * ||X_i||, ||X_i||^2 = G_ii, of each output
    sparsegpt   removes the smallest W_io^2 / [H_i^-1]_ii of 128 inputs at a time, G = H but for
                damping and H_i that of inputs i and later; corrects later inputs for each removal

The inputs of an embedding are one-hot: G is diagonal, with the counts of the rows. No removal can
be corrected then, and the error of each is W_io^2 G_ii, so that `sparsegpt` ranks a whole table.

References:
    Sun et al., "A simple and effective pruning approach for large language models" (2024), arXiv
    2306.11695, equation 1 (Wanda).
    Frantar and Alistarh, "SparseGPT: massive language models can be accurately pruned in one-shot"
    (2023), arXiv 2301.00774, algorithm 1 and equations 3 to 5.
    Hassibi, Stork and Wolff, "Optimal brain surgeon and general network pruning" (1993): removal of
    weight q changes the others by -w_q / [H^-1]_qq * H^-1 e_q, at a loss of w_q^2 / 2 [H^-1]_qq.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, UInt32

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning.layer_inputs import Gram
from sparsecap_jax.pruning.ranking import prune_smallest
from sparsecap_jax.pruning.structures import NofM, Unstructured
from sparsecap_jax.pruning.targets import removals
from sparsecap_jax.settings import Range, check_range

METHODS = ("magnitude", "wanda", "sparsegpt")
DAMPING = 0.01

Kernel = Float[Array, "I O"]
Weights = Float[Array, "..."]


def prune_kernel(
    method: str, kernel: Weights, gram: Gram | None, sparsity: float, structure: Unstructured
) -> tuple[Weights, Weights]:
    """Prune a kernel `[*window, C, O]`, or the table of an embedding.

    Args:
        method: see above.
        kernel: weights.
        gram: from `gram_of`; `magnitude` needs none.
        sparsity: fraction that goes; of each group of a convolution by itself, but for `magnitude`.
        structure: single weights, or N:M along the inputs.

    Returns:
        The pruned kernel and its mask, {0, 1}.

    Raises:
        ConfigError: an unknown method, a sparsity out of range, or C is no multiple of M.
    """
    pattern = structure if isinstance(structure, NofM) else None
    _check(kernel, sparsity, pattern)
    if method not in METHODS:
        raise ConfigError(f"method is {method!r}; expected one of {', '.join(METHODS)}")
    if method == "magnitude":
        return _by_score(kernel, jnp.abs(kernel).astype(jnp.float32), sparsity, structure)
    if gram is None:
        raise ConfigError(f"method {method!r} needs the inputs of a layer, and there are none")
    if gram.ndim == 1:
        return _prune_table(method, kernel, gram, sparsity, structure)
    function, groups = {"wanda": wanda, "sparsegpt": sparsegpt}[method], len(gram)
    matrices = kernel.reshape(gram.shape[1], groups, -1)
    pairs = [function(matrices[:, g], gram[g], sparsity, pattern) for g in range(groups)]
    weights, masks = (
        jnp.stack(parts, 1).reshape(kernel.shape) for parts in zip(*pairs, strict=True)
    )
    return weights, masks


def _prune_table(
    method: str, table: Kernel, counts: Float[Array, " V"], sparsity: float, structure: Unstructured
) -> tuple[Kernel, Kernel]:
    """Prune an embedding; rows count as seen a hundredth of the mean more often than they were.

    So rows that never occur are ranked by their magnitudes, below all others.
    """
    seen = counts + jnp.float32(DAMPING) * jnp.mean(counts)
    scores = jnp.abs(table).astype(jnp.float32) * jnp.sqrt(seen)[:, None]
    if method == "wanda":
        structure = _of_each_output(len(table), sparsity, structure)
    return _by_score(table, scores, sparsity, structure)


def _of_each_output(size: int, sparsity: float, structure: Unstructured | None) -> NofM:
    if isinstance(structure, NofM):
        return structure
    return NofM(size - removals(sparsity, size), size, -2)


def _by_score(
    kernel: Weights, scores: Weights, sparsity: float, structure: Unstructured
) -> tuple[Weights, Weights]:
    remove = removals(sparsity, kernel.size)
    if isinstance(structure, NofM):
        remove = structure.m - structure.n
    (mask,) = structure.prune([scores], jnp.full(1, remove, jnp.uint32), (0,))
    return kernel * mask.astype(kernel.dtype), mask


def wanda(
    kernel: Kernel, gram: Float[Array, "I I"], sparsity: float, pattern: NofM | None = None
) -> tuple[Kernel, Kernel]:
    """Prune a kernel by |weight| times the norm of its input, within each output.

    Args:
        kernel: weights W.
        gram: X^T X of the inputs; its diagonal alone is read.
        sparsity: `int(sparsity * I)` weights of each output go.
        pattern: N:M along the inputs, instead of `sparsity`.

    Returns:
        The pruned kernel and its mask, {0, 1}.

    Raises:
        ConfigError: a sparsity out of range, or I is no multiple of M.

    Cost: O(I O log I) for a sort. Memory: O(I O).
    """
    _check(kernel, sparsity, pattern)
    scores = jnp.abs(kernel).astype(jnp.float32) * jnp.sqrt(jnp.diagonal(gram))[:, None]
    return _by_score(kernel, scores, sparsity, _of_each_output(len(kernel), sparsity, pattern))


def sparsegpt(
    kernel: Kernel,
    gram: Float[Array, "I I"],
    sparsity: float,
    pattern: NofM | None = None,
    *,
    damping: float = DAMPING,
    block: int = 128,
) -> tuple[Kernel, Kernel]:
    """Prune a kernel so that its products with the inputs change little, and correct the rest.

    Inputs are passed in order. Of each block of them the weights with the smallest error go; what
    an input's removals change is made good by all later inputs.

    Args:
        kernel: weights W.
        gram: X^T X of the inputs.
        sparsity: fraction of the weights of each block that goes.
        pattern: N:M along the inputs, instead of `sparsity`.
        damping: what is added to the diagonal of G, as a fraction of its mean.
        block: inputs whose weights are ranked together; rounded up to a multiple of M.

    Returns:
        The pruned kernel, of `kernel`'s dtype, and its mask, {0, 1}.

    Raises:
        ConfigError: as in `wanda`.

    Cost: O(I^3) for an inverse and a Cholesky factor, in float64 on the host, and O(I^2 O) for the
    corrections, in float32. Memory: O(I^2 + I O).
    """
    _check(kernel, sparsity, pattern)
    weights, factor = jnp.asarray(kernel, jnp.float32), _factor(np.asarray(gram), damping)
    unused = np.diagonal(gram) == 0
    weights = jnp.where(jnp.asarray(unused)[:, None], jnp.float32(0), weights)
    group = pattern.m if pattern else 1
    block, masks = -(-block // group) * group, []
    for start in range(0, len(weights), block):
        end = min(start + block, len(weights))
        rows, part = weights[start:end], jnp.asarray(factor[start:end, start:end])
        remove = jnp.full(1, removals(sparsity, rows.size), jnp.uint32)
        rows, mask, errors = _prune_block(rows, part, remove, pattern)
        later = jnp.asarray(factor[start:end, end:])
        corrections = jnp.matmul(later.T, errors, precision=lax.Precision.HIGHEST)
        weights = weights.at[start:end].set(rows).at[end:].add(-corrections)
        masks.append(mask)
    return weights.astype(kernel.dtype), jnp.concatenate(masks)


def _check(kernel: Weights, sparsity: float, pattern: NofM | None) -> None:
    if pattern is not None:
        pattern.entries(("kernel",), kernel.shape)
    check_range("sparsity", sparsity, Range(0.0, 1.0, open_high=True))


def _factor(gram: np.ndarray, damping: float) -> np.ndarray:
    """Return the upper Cholesky factor U of the inverse of the damped Gram matrix, U^T U.

    Row i of U, divided by its diagonal, is that of the inverse for the inputs i and later.
    """
    hessian = gram.astype(np.float64)
    diagonal = np.diagonal(hessian)
    # Inputs that are always 0: their weights go, and correct nothing.
    added = np.where(diagonal == 0, 1.0, damping * diagonal.mean())
    inverse = np.linalg.inv(hessian + np.diag(added))
    return np.linalg.cholesky((inverse + inverse.T) / 2).T.astype(np.float32)


@partial(jax.jit, static_argnames="pattern")
def _prune_block(
    weights: Kernel, factor: Float[Array, "I I"], remove: UInt32[Array, "1"], pattern: NofM | None
) -> tuple[Kernel, Kernel, Kernel]:
    """Return a block's weights after its removals, its mask, and the errors to be corrected."""
    spread = jnp.diagonal(factor)[:, None]
    if pattern is None:
        (mask,) = prune_smallest([jnp.square(weights / spread)], remove, (0,))
    else:
        mask = jnp.ones_like(weights)

    def choose(state, i):
        weights, mask = state
        shape = (pattern.m, weights.shape[1])
        rows = lax.dynamic_slice(weights, (i, 0), shape)
        scores = jnp.square(rows / lax.dynamic_slice(spread, (i, 0), (pattern.m, 1)))
        gone = jnp.full(1, pattern.m - pattern.n, jnp.uint32)
        (kept,) = NofM(pattern.n, pattern.m, -2).prune([scores], gone, (0,))
        return lax.dynamic_update_slice(mask, kept, (i, 0))

    def take(i, state):
        weights, mask, errors = state
        if pattern is not None:
            mask = lax.cond(i % pattern.m == 0, choose, lambda s, i: s[1], (weights, mask), i)
        error = jnp.where(mask[i] != 0, jnp.float32(0), weights[i]) / factor[i, i]
        return weights - factor[i][:, None] * error, mask, errors.at[i].set(error)

    state = (weights, mask, jnp.zeros_like(weights))
    weights, mask, errors = lax.fori_loop(0, len(weights), take, state)
    return weights * mask, mask, errors
