"""Pruners that find no masks: dense training, and training with the masks of a pruned model."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning.base import Pruner, PruneState, Target
from sparsecap_jax.pruning.masks import sparsity
from sparsecap_jax.pruning.paths import by_path, nest
from sparsecap_jax.types import PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoPruner(Pruner):
    """No masks at all: dense training through the same interface."""

    sparsity: Target = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.sparsity:
            raise ConfigError(f"pruner.sparsity is {self.sparsity}, but pruner.name is 'none'")

    def init(self, rng: Array, params: PyTree) -> PruneState:
        """Return a state without masks."""
        return PruneState({}, {})


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskFreeze(Pruner):
    """Masks of a pruned model, which stay fixed while its weights are trained.

    Masks come from `load_masks`; where none were loaded, zero weights count as pruned.

    Attributes:
        sparsity: expected sparsity of the given masks; 0 accepts any.
        rewinds: whether training starts from the initial weights (lottery tickets) instead of the
            pruned model's.
    """

    sparsity: Target = 0.0
    rewinds: bool = False

    expects_trained: ClassVar[bool] = True
    needs_masks: ClassVar[bool] = True

    def prepare(self, state, params, grad_fn=None, batches=()) -> PruneState:
        """Read the masks off the weights unless masks were loaded.

        Raises:
            ConfigError: the model is not pruned, or its nonzeros are more than 5 % off the target.
        """
        masks = by_path(state.masks)
        if all(bool(jnp.all(mask == 1)) for mask in masks.values()):
            leaves = by_path(params)
            masks = {path: (leaves[path] != 0).astype(jnp.float32) for path in masks}
        pruned = sparsity(nest(masks)).prunable
        if pruned == 0:
            raise ConfigError(
                f"pruner.name is {self.name!r}, but the model to start from is dense: it has "
                "neither masks nor zero weights"
            )
        if self.sparsity and abs(self.sparsity - pruned) > 0.05 * (1.0 - self.sparsity):
            raise ConfigError(
                f"pruner.sparsity is {self.sparsity}, but the model to start from has {pruned:.4f}"
            )
        return state.replace(masks=nest(masks))

    def reached(self, binary: PyTree, tolerance: float = 0.05) -> bool:
        """As in `Pruner`; always True where no target is set."""
        return not self.sparsity or super().reached(binary, tolerance)
