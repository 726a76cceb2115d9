"""Training a model whose masks are given, from its found weights."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import jax.numpy as jnp

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning.base import Pruner, PruneState
from sparsecap_jax.pruning.masks import sparsity
from sparsecap_jax.pruning.paths import by_path, nest
from sparsecap_jax.types import PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskFreeze(Pruner):
    """Keep the masks of a pruned model fixed while its weights train on.

    Masks come from `load_masks`, or where none were loaded from the zeros of the weights.

    Attributes:
        sparsity: what the found masks should have; 0 takes them as they are.
    """

    sparsity: float = 0.0

    expects_trained: ClassVar[bool] = True
    needs_masks: ClassVar[bool] = True

    def prepare(
        self,
        state: PruneState,
        params: PyTree,
        grad_fn: Callable[[PyTree, Any], PyTree] | None = None,
        batches: Iterable[Any] = (),
    ) -> PruneState:
        """Read the masks off the weights unless masks were loaded.

        Raises:
            ConfigError: the model is not pruned, or its nonzeros are more than 5 % off the target.
        """
        masks = by_path(state.masks)
        if all(bool(jnp.all(mask == 1)) for mask in masks.values()):
            leaves = by_path(params)
            masks = {path: (leaves[path] != 0).astype(jnp.float32) for path in masks}
        found = sparsity(nest(masks)).prunable
        if found == 0:
            raise ConfigError(
                f"pruner.name is {self.name!r}, but the model to start from is dense: it has "
                "neither masks nor zero weights"
            )
        if not self.on_target(found):
            raise ConfigError(
                f"pruner.sparsity is {self.sparsity}, but the model to start from has {found:.4f}"
            )
        return state.replace(masks=nest(masks))

    def on_target(self, sparsity: float, tolerance: float = 0.05) -> bool:
        """As in `Pruner`; always where no target is set."""
        return not self.sparsity or super().on_target(sparsity, tolerance)

    def reached(self, binary: PyTree, tolerance: float = 0.05) -> bool:
        """As in `Pruner`; always where no target is set."""
        return not self.sparsity or super().reached(binary, tolerance)
