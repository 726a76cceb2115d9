"""Pruning of a trained model without training: its layers, one after another.

See `second_order` for the methods, and `layer_inputs` for the inputs of layers.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning.layer_inputs import (
    Images,
    Inputs,
    LayerInputs,
    are_ids,
    gram_of,
    linen_inputs,
)
from sparsecap_jax.pruning.paths import arrays_by_path, like, listed, map_paths, show
from sparsecap_jax.pruning.second_order import prune_kernel, sparsegpt, wanda
from sparsecap_jax.pruning.structures import NofM, Unstructured, parse_structure
from sparsecap_jax.settings import Range, check_range
from sparsecap_jax.types import PyTree

__all__ = ["Images", "linen_inputs", "prune_layers", "sparsegpt", "wanda"]


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
    """Prune linear layers, convolutions and embeddings of a trained model, one after another.

    Each layer sees the inputs that the layers pruned before it leave.

        params, masks = prune_layers(params, linen_inputs(apply), batches, 0.5, method="wanda")

    Args:
        params: trained weights.
        inputs_of: `(params, batch) -> inputs` of layers by the path of their kernel, in the order
            in which they run: `[..., I]` of a linear layer, `Images` of a convolution, ids `[...]`
            of an embedding (below 0: padding), or a list of them.
        batches: calibration batches; they are read once for each layer.
        sparsity: fraction of each kernel that goes; see the methods for how it is counted.
        method: `magnitude`, `wanda` or `sparsegpt`, see `second_order`.
        sparsity_type: `unstructured`, or `N:M` along the inputs, of a convolution its channels
            (`sparsity` is then 1 - N / M).
        input_axis: axis of the inputs in kernels `[*window, I, O]`; -1 for weights
            `[O, I, *window]` of Equinox. Tables of embeddings are `[V, D]` either way.
        layers: paths to prune, in order; by default all that `inputs_of` gives.

    Returns:
        The parameters, zeros in place, and masks of the pruned kernels.

    Raises:
        ConfigError: an unknown method, no batches, no layers at all, a layer that is missing or
            whose kernel does not take its inputs, a sparsity out of range or other than 1 - N / M,
            or an impossible structure.

    Cost: a pass over all batches for each layer, and the method's own. Memory: Gram matrices of one
    layer, the inputs of all layers for one batch, and of a convolution its patches.
    """
    if not batches:
        raise ConfigError("prune_layers: no calibration batches")
    structure = layer_structure(sparsity, sparsity_type)
    known, inputs_of, masks = _order(inputs_of, params, batches[0]), jax.jit(inputs_of), {}
    if not known:
        raise ConfigError(
            "prune_layers: inputs_of gives no inputs of any layer; linen_inputs sees layers of "
            "nn.Dense, nn.Conv and nn.Embed, those of other classes with kinds=(CLASS, ...), and "
            "none inside of nn.scan"
        )
    for name in layers or known:
        leaves = {show(path): (path, leaf) for path, leaf in arrays_by_path(params).items()}
        if name not in known or name not in leaves:
            raise ConfigError(
                f"prune_layers: no kernel with inputs at {name!r}; "
                f"there are {listed((n,) for n in known)}"
            )
        path, kernel = leaves[name][0], jnp.asarray(leaves[name][1])
        inputs = (inputs_of(params, batch)[name] for batch in batches)
        try:
            pair = _prune(method, kernel, inputs, sparsity, structure, input_axis % 2)
        except ConfigError as error:
            raise ConfigError(f"prune_layers: {name}: {error}") from error
        weights, masks[path] = pair
        new = {path: weights}
        params = map_paths(lambda path, leaf, new=new: new.get(path, leaf), params)
    return params, like(params, masks)


def _prune(
    method: str,
    kernel: Array,
    inputs: Iterable[LayerInputs],
    sparsity: float,
    structure: Unstructured,
    outputs_first: int,
) -> tuple[Array, Array]:
    """Return a layer's kernel, pruned, and its mask; `inputs` are those of each batch."""
    gram = None
    for part in inputs:
        turns = outputs_first and not are_ids(part)
        turned = jnp.moveaxis(kernel, (0, 1), (-1, -2)) if turns else kernel
        found = gram_of(part, turned.shape)
        gram = found if gram is None else gram + found
    weights, mask = prune_kernel(method, turned, gram, sparsity, structure)
    if turns:
        weights, mask = (jnp.moveaxis(array, (-1, -2), (0, 1)) for array in (weights, mask))
    return weights, mask


def _order(inputs_of: Inputs, params: PyTree, batch: Any) -> list[str]:
    """Return the layers in the order in which they run, which compiled functions forget."""
    names: list[str] = []
    jax.eval_shape(lambda params: names.extend(inputs_of(params, batch)), params)
    return names


def layer_structure(sparsity: float, sparsity_type: str) -> Unstructured:
    """Return the structure, single weights or N:M along the inputs, whose sparsity this is.

    Raises:
        ConfigError: another structure, or a sparsity out of range or other than 1 - N / M.
    """
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
