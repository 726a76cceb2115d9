"""State dicts in the conventions of `torch.nn.utils.prune`, without PyTorch.

A pruned module there holds a parameter `weight_orig` and a buffer `weight_mask` in place of
`weight`, which becomes their product before every forward pass. The mask has the weight's dtype,
1 keeps.
"""

from collections.abc import Mapping

import numpy as np

from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.interop.reference import MASK_SUFFIX

ORIG, MASK = "_orig", "_mask"


def to_torch_prune(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename weights and their masks as `torch.nn.utils.prune` does.

    `state_dict` is the result of `reference.export_state_dict`, of binarized masks. Each weight
    that has a mask becomes `<weight>_orig` and `<weight>_mask`; all else, the order and the arrays
    themselves stay.

    Raises:
        CheckpointError: a mask is not binary, has no weight, or one of another shape.
    """
    renamed = {}
    for name, value in state_dict.items():
        weight = name.removesuffix(MASK_SUFFIX)
        if weight != name:
            _check_mask(name, value, state_dict.get(weight))
            renamed[weight + MASK] = value
        else:
            renamed[name + ORIG if name + MASK_SUFFIX in state_dict else name] = value
    return renamed


def from_torch_prune(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Undo `to_torch_prune`, for `reference.load_state_dict`.

    Raises:
        CheckpointError: a weight has no mask, or one that does not fit or is not binary.
    """
    renamed = {}
    for name, value in state_dict.items():
        if name.endswith(ORIG):
            weight = name.removesuffix(ORIG)
            if weight + MASK not in state_dict:
                raise CheckpointError(f"state dict: {name!r} has no {weight + MASK!r}")
            renamed[weight] = value
        elif name.endswith(MASK) and (weight := name.removesuffix(MASK)) + ORIG in state_dict:
            _check_mask(name, value, state_dict[weight + ORIG])
            renamed[weight + MASK_SUFFIX] = value
        else:
            renamed[name] = value
    return renamed


def _check_mask(name: str, mask: np.ndarray, weight: np.ndarray | None) -> None:
    if weight is None:
        raise CheckpointError(f"state dict: mask {name!r} has no weight")
    if np.shape(mask) != np.shape(weight):
        raise CheckpointError(
            f"state dict: mask {name!r} has shape {np.shape(mask)}; its weight {np.shape(weight)}"
        )
    if not np.isin(mask, (0, 1)).all():
        raise CheckpointError(f"state dict: mask {name!r} is not binary; binarize it first")
