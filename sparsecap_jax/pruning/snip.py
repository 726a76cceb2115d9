"""SNIP: prune before training by connection sensitivity, |gradient x weight|.

References:
    Lee, Ajanthan and Torr, "SNIP: single-shot network pruning based on connection sensitivity"
    (2019), arXiv 1810.02340, equations 5 and 6.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning.base import PruneState
from sparsecap_jax.pruning.masks import apply_masks
from sparsecap_jax.pruning.ranked import Ranked
from sparsecap_jax.types import PyTree


def saliency(
    mask_grads: Sequence[Float[Array, "..."]], reference_signed: bool
) -> list[Float[Array, "..."]]:
    """Scores from the gradients of the loss by the masks.

    Args:
        mask_grads: float32 tensors, gradient x weight.
        reference_signed: rank signed values in the direction of their sum, as the PyTorch
            reference does (it divides them by their sum), instead of absolute ones.

    Returns:
        float32 scores; the smallest go first.
    """
    if not reference_signed:
        return [jnp.abs(grad) for grad in mask_grads]
    total = sum(jnp.sum(grad) for grad in mask_grads)
    return [jnp.where(total < 0, -grad, grad) for grad in mask_grads]


def summed_gradients(
    name: str,
    params: PyTree,
    grad_fn: Callable[[PyTree, Any], PyTree] | None,
    batches: Iterable[Any],
    count: int,
) -> PyTree:
    """Gradients of several batches, added up.

    Args:
        name: the pruner's, for messages.
        params: where to take them.
        grad_fn: `grad_fn(params, batch)` -> gradients, structured as params.
        batches: at least `count` batches.
        count: how many to add up.

    Returns:
        The sum, structured as params.

    Raises:
        ConfigError: no `grad_fn`, or too few batches.
    """
    if grad_fn is None:
        raise ConfigError(f"pruner {name!r} needs grad_fn(params, batch) and batches")
    total, found = None, 0
    for batch in itertools.islice(batches, count):
        grads = grad_fn(params, batch)
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
        found += 1
    if total is None or found < count:
        raise ConfigError(f"pruner.num_batches is {count}; got {found} batches")
    return total


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snip(Ranked):
    """Remove the connections whose removal changes the loss least, judged on a few batches.

    Gradients of the batches are added up before scoring.

    Attributes:
        num_batches: how many batches to add up.
        reference_signed: rank as the PyTorch reference does; see `saliency`.
    """

    num_batches: int = 1
    reference_signed: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.num_batches < 1:
            raise ConfigError(f"pruner.num_batches is {self.num_batches}; expected at least 1")

    @property
    def batches_needed(self) -> int:
        """How many batches `prepare` takes gradients of."""
        return self.num_batches

    def scores(
        self, state: PruneState, weights: list[Array], grads: list[Array] | None, event: Any
    ) -> list[Array]:
        """Connection sensitivity; see `saliency`."""
        if grads is None:
            raise ConfigError(f"pruner {self.name!r} ranks gradients; give it grads")
        products = [g * w for g, w in zip(grads, weights, strict=True)]
        return saliency(products, self.reference_signed)

    def prepare(
        self,
        state: PruneState,
        params: PyTree,
        grad_fn: Callable[[PyTree, Any], PyTree] | None = None,
        batches: Iterable[Any] = (),
    ) -> PruneState:
        """Score every active weight on the batches and compute the masks.

        Raises:
            ConfigError: no `grad_fn`, or fewer batches than `num_batches`.
        """
        active, _ = self.split(state.masks)
        if not active:
            return state
        masked = apply_masks(params, state.masks)
        grads = summed_gradients(self.name, masked, grad_fn, batches, self.num_batches)
        return self.put(state, self.rank(state, params, grads))
