"""Similarity of what was trained: masks of models, and layers of one model."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Shaped

from sparsecap_jax.errors import ConfigError

_LAYER = re.compile(r"(?P<stack>\w+?)_?layers?_(?P<number>\d+)/(?P<rest>.+)")


def mask_overlap(masks: Sequence[Mapping[str, np.ndarray]]) -> Float[np.ndarray, "N N"]:
    """Return for each two models the weights that both keep, over those that either keeps.

    Independent masks of sparsity s share (1 - s) / (1 + s) of them on average.

    Args:
        masks: of each model the bits of each tensor's mask, packed by `numpy.packbits`.

    Raises:
        ConfigError: the models' tensors differ.
    """
    sizes = [{name: bits.shape for name, bits in one.items()} for one in masks]
    if any(one != sizes[0] for one in sizes):
        raise ConfigError("masks of different tensors; expected models of one architecture")
    shares = np.eye(len(masks))
    for i, one in enumerate(masks):
        for j, other in enumerate(masks[:i]):
            both = sum(_ones(bits & other[name]) for name, bits in one.items())
            either = sum(_ones(bits | other[name]) for name, bits in one.items())
            shares[i, j] = shares[j, i] = both / max(either, 1)
    return shares


def _ones(bits: np.ndarray) -> int:
    return int(np.bitwise_count(bits).sum())


def layer_stacks(
    leaves: Mapping[str, Shaped[np.ndarray, "..."]],
) -> dict[str, list[dict[str, np.ndarray]]]:
    """Return the stacks of layers of the same form, such as `encoder`: leaves of each layer.

    Layers are named `STACK_layers_N/...`. Stacks of one layer, or of layers that differ in their
    tensors, are left out.
    """
    stacks: dict[str, dict[int, dict[str, np.ndarray]]] = {}
    for name, leaf in leaves.items():
        if found := _LAYER.fullmatch(name):
            layers = stacks.setdefault(found["stack"], {})
            layers.setdefault(int(found["number"]), {})[found["rest"]] = leaf
    same = {}
    for stack, layers in stacks.items():
        ordered = [layers[number] for number in sorted(layers)]
        shapes = [{name: leaf.shape for name, leaf in layer.items()} for layer in ordered]
        if len(ordered) > 1 and all(one == shapes[0] for one in shapes):
            same[stack] = ordered
    return same


def layer_distances(layers: Sequence[Mapping[str, np.ndarray]]) -> Float[np.ndarray, "L L"]:
    """Return root mean square differences between the weights of layers, each unit's scaled to 1.

    The weights into each unit, a column of a kernel, are divided by their norm; so are vectors.

    References:
        Tan et al., "ACORT: A Compact Object Relation Transformer" (2022), arXiv 2202.05451: the
        similarity of the layers of an Object Relation Transformer.
    """
    sums, count = np.zeros((len(layers), len(layers))), 0
    for name in layers[0]:
        scaled = []
        for layer in layers:
            leaf = np.asarray(layer[name], np.float32)
            norm = np.linalg.norm(leaf, axis=-2 if leaf.ndim > 1 else -1, keepdims=True)
            scaled.append(leaf / np.maximum(norm, 1e-12))
        count += scaled[0].size
        for i, one in enumerate(scaled):
            for j, other in enumerate(scaled[:i]):
                sums[i, j] += np.square(one - other).sum(dtype=np.float64)
    return np.sqrt((sums + sums.T) / max(count, 1))
