"""Pruning of a trained model without training: linear layers, one after another.

A layer computes Y = X W from inputs X `[N, I]` with a kernel W `[I, O]`. Calibration batches give
its Gram matrix G = X^T X `[I, I]`, which is all that these methods need to know.

    magnitude   removes the smallest |W_io|
    wanda       removes the smallest |W_io| * ||X_i||, ||X_i||^2 = G_ii, of each output
    sparsegpt   removes the smallest W_io^2 / [H_i^-1]_ii of 128 inputs at a time, G = H but for
                damping and H_i that of inputs i and later; corrects later inputs for each removal

References:
    Sun et al., "A simple and effective pruning approach for large language models" (2024), arXiv
    2306.11695, equation 1 (Wanda).
    Frantar and Alistarh, "SparseGPT: massive language models can be accurately pruned in one-shot"
    (2023), arXiv 2301.00774, algorithm 1 and equations 3 to 5.
    Hassibi, Stork and Wolff, "Optimal brain surgeon and general network pruning" (1993): removal of
    weight q changes the others by -w_q / [H^-1]_qq * H^-1 e_q, at a loss of w_q^2 / 2 [H^-1]_qq.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, UInt32

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning.paths import arrays_by_path, like, listed, map_paths, show
from sparsecap_jax.pruning.ranking import prune_smallest
from sparsecap_jax.pruning.structures import NofM, Unstructured, parse_structure
from sparsecap_jax.pruning.targets import removals
from sparsecap_jax.settings import Range, check_range
from sparsecap_jax.types import PyTree

Kernel = Float[Array, "I O"]
# (params, batch) -> inputs [..., I] of linear layers by the path of their kernel
Inputs = Callable[[PyTree, Any], Mapping[str, Array]]


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
    size = kernel.shape[0]
    pattern = pattern or NofM(size - removals(sparsity, size), size, -2)
    (mask,) = pattern.prune([scores], jnp.full(1, pattern.m - pattern.n, jnp.uint32), (0,))
    return kernel * mask.astype(kernel.dtype), mask


def sparsegpt(
    kernel: Kernel,
    gram: Float[Array, "I I"],
    sparsity: float,
    pattern: NofM | None = None,
    *,
    damping: float = 0.01,
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


def _check(kernel: Kernel, sparsity: float, pattern: NofM | None) -> None:
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


def prune_layers(
    params: PyTree,
    inputs_of: Inputs,
    batches: Sequence[Any],
    sparsity: float,
    *,
    method: str = "sparsegpt",
    sparsity_type: str = "unstructured",
    input_axis: int = -2,
    layers: Sequence[str] = (),
) -> tuple[PyTree, PyTree]:
    """Prune linear layers of a trained model one after another, from calibration batches.

    Each layer sees the inputs that the layers pruned before it leave.

        params, masks = prune_layers(params, linen_inputs(apply), batches, 0.5, method="wanda")

    Args:
        params: trained weights.
        inputs_of: `(params, batch) -> inputs` of linear layers, `[..., I]`, by the path of their
            kernel, in the order in which they run.
        batches: calibration batches; they are read once for each layer.
        sparsity: fraction of each kernel that goes; see the methods for how it is counted.
        method: see above.
        sparsity_type: `unstructured`, or `N:M` along the inputs (`sparsity` is then 1 - N / M).
        input_axis: axis of the inputs in kernels `[I, O]`; -1 for weights `[O, I]` of Equinox.
        layers: paths to prune, in order; by default all that `inputs_of` gives.

    Returns:
        The parameters, zeros in place, and masks of the pruned kernels.

    Raises:
        ConfigError: an unknown method, no batches, no layers at all, a layer that is missing or
            whose kernel has not two dimensions, a sparsity out of range or other than 1 - N / M, or
            an impossible structure.

    Cost: a pass over all batches for each layer, and the method's own. Memory: a Gram matrix, and
    the inputs of all layers for one batch.
    """
    if not batches:
        raise ConfigError("prune_layers: no calibration batches")
    structure = _structure(sparsity, sparsity_type)
    known, inputs_of, masks = _order(inputs_of, params, batches[0]), jax.jit(inputs_of), {}
    if not known:
        raise ConfigError(
            "prune_layers: inputs_of gives no inputs of any layer; linen_inputs sees layers of "
            "nn.Dense, those of other classes with kinds=(CLASS, ...), and none inside of nn.scan"
        )
    for name in layers or known:
        leaves = {show(path): (path, leaf) for path, leaf in arrays_by_path(params).items()}
        if name not in known or name not in leaves or len(leaves[name][1].shape) != 2:
            raise ConfigError(
                f"prune_layers: no kernel of two dimensions with inputs at {name!r}; "
                f"there are {listed((n,) for n in known)}"
            )
        path, kernel = leaves[name][0], jnp.asarray(leaves[name][1])
        kernel = kernel if input_axis % 2 == 0 else kernel.T
        gram = _gram(inputs_of(params, batch)[name] for batch in batches)
        kernel, mask = _prune(method, kernel, gram, sparsity, structure)
        if input_axis % 2:
            kernel, mask = kernel.T, mask.T
        masks[path] = mask
        new = {path: kernel}
        params = map_paths(lambda path, leaf, new=new: new.get(path, leaf), params)
    return params, like(params, masks)


def _order(inputs_of: Inputs, params: PyTree, batch: Any) -> list[str]:
    """Return the layers in the order in which they run, which compiled functions forget."""
    names: list[str] = []
    jax.eval_shape(lambda params: names.extend(inputs_of(params, batch)), params)
    return names


def _structure(sparsity: float, sparsity_type: str) -> Unstructured:
    """Return the structure, whole weights or N:M, whose sparsity this is."""
    structure = parse_structure(sparsity_type, -2)
    check_range("sparsity", sparsity, Range(0.0, 1.0, open_high=True))
    if type(structure) not in (Unstructured, NofM):
        raise ConfigError(f"sparsity_type is {sparsity_type!r}; expected 'unstructured' or N:M")
    if isinstance(structure, NofM) and abs(sparsity - structure.removed) > 1e-6:
        raise ConfigError(
            f"sparsity is {sparsity}, but sparsity_type {sparsity_type!r} removes "
            f"{structure.removed:.6g}"
        )
    return structure


def _prune(method: str, kernel: Kernel, gram: Array, sparsity: float, structure: Unstructured):
    pattern = structure if isinstance(structure, NofM) else None
    if method == "sparsegpt":
        return sparsegpt(kernel, gram, sparsity, pattern)
    if method == "wanda":
        return wanda(kernel, gram, sparsity, pattern)
    if method != "magnitude":
        raise ConfigError(f"method is {method!r}; expected magnitude, wanda or sparsegpt")
    _check(kernel, sparsity, pattern)
    remove = pattern.m - pattern.n if pattern else removals(sparsity, kernel.size)
    counts = jnp.full(1, remove, jnp.uint32)
    scores = [jnp.abs(kernel).astype(jnp.float32)]
    (mask,) = structure.prune(scores, counts, (0,))
    return kernel * mask.astype(kernel.dtype), mask


def _gram(inputs: Iterable[Array]) -> Float[Array, "I I"]:
    total: Any = None
    for part in inputs:
        rows = jnp.reshape(part, (-1, part.shape[-1])).astype(jnp.float32)
        product = jnp.matmul(rows.T, rows, precision=lax.Precision.HIGHEST)
        total = product if total is None else total + product
    return total


def linen_inputs(apply: Callable[[PyTree, Any], Any], kinds: tuple[type, ...] = ()) -> Inputs:
    """Return `inputs_of` for a model of Linen: the inputs of its `nn.Dense` layers.

    Layers of other classes are not seen, and those inside of `nn.scan`, `remat` or `jit` neither;
    give their inputs with a function of your own.

    Args:
        apply: `apply(params, batch)` runs the model.
        kinds: further classes of layers with one argument `[..., I]` and a leaf `kernel` `[I, O]`,
            such as `models.layers.Linear` of this package's captioners.
    """
    from flax import linen as nn
    from flax.core.tracers import current_trace

    def inputs_of(params: PyTree, batch: Any) -> dict[str, Array]:
        seen: dict[str, list[Array]] = {}
        outside = current_trace()

        def record(function, args, kwargs, context):
            module = context.module
            called = isinstance(module, (nn.Dense, *kinds)) and context.method_name == "__call__"
            if called and current_trace() == outside:  # values of an inner trace would leak
                inputs = args[0] if args else kwargs["inputs"]
                rows = jnp.reshape(inputs, (-1, inputs.shape[-1]))
                seen.setdefault("/".join((*module.path, "kernel")), []).append(rows)
            return function(*args, **kwargs)

        with nn.intercept_methods(record):
            apply(params, batch)
        return {name: jnp.concatenate(rows) for name, rows in seen.items()}

    return inputs_of
