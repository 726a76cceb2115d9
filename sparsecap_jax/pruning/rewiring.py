"""Random masks from the start, which stay, or which training rewires.

References:
    Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse
    connectivity inspired by network science" (2018), arXiv 1707.04780 (SET).
    Evci et al., "Rigging the lottery: making all tickets winners" (2020), arXiv 1911.11134 (RigL).
"""

import dataclasses
import math
from typing import Annotated, Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning import ranking
from sparsecap_jax.pruning.base import PruneState
from sparsecap_jax.pruning.masks import apply_masks, apply_straight_through
from sparsecap_jax.pruning.ranked import Arrays, Ranked, When, pick
from sparsecap_jax.pruning.targets import Targets
from sparsecap_jax.settings import Range
from sparsecap_jax.types import PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class StaticSparse(Ranked):
    """Random masks at initialisation, which stay."""

    hard_zero: bool = True

    when: ClassVar[When] = "before"
    starts_sparse: ClassVar[bool] = True
    draws: ClassVar[bool] = True

    def scores(
        self, state: PruneState, weights: Arrays, grads: Arrays | None, event: Any
    ) -> Arrays:
        """Return uniform scores in (0, 1)."""
        return ranking.random_scores(state.extras["seed"], event, weights)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rewired(Ranked):
    """Random masks, of which each event drops the smallest weights and grows as many others.

    The number of nonzeros of each tensor never changes. Grown weights start at 0, without
    momentum. A dropped weight may grow again at once.

    Attributes:
        drop_fraction: fraction of a tensor's nonzeros that the first event exchanges; it falls to
            0 along a half cosine until the last event.
        growth: weights that grow: `random` ones (SET) or those with the largest `gradient` (RigL).
            For RigL the training step differentiates with respect to pruned weights too (`apply`),
            `update` reads these gradients, and the optimizer gets those of the kept weights alone
            (`gradients`).
    """

    hard_zero: bool = True
    drop_fraction: Annotated[float, Range(0.0, 1.0)] = 0.1
    growth: Literal["random", "gradient"] = "random"

    when: ClassVar[When] = "periodic"
    initial_sparsity: ClassVar[float] = 0.0
    starts_sparse: ClassVar[bool] = True
    draws: ClassVar[bool] = True

    scores = StaticSparse.scores

    def __post_init__(self):
        super().__post_init__()
        if self.sparsity_type != "unstructured":
            raise ConfigError(
                f"pruner.sparsity_type is {self.sparsity_type!r}; {self.name!r} rewires single "
                "weights: expected 'unstructured'"
            )
        if self.distribution == "global":
            raise ConfigError("pruner.distribution is 'global'; expected 'uniform' or 'erk'")

    def apply(self, params: PyTree, binary: PyTree) -> PyTree:
        """Return masked parameters; for RigL with a gradient for pruned weights too."""
        masked = apply_straight_through if self.growth == "gradient" else apply_masks
        return masked(params, binary)

    def gradients(self, grads: PyTree, masks: PyTree) -> PyTree:
        """Return the gradients of the kept weights; for RigL zeros for the others."""
        return apply_masks(grads, masks) if self.growth == "gradient" else grads

    def drops(self, targets: Targets) -> np.ndarray:
        """uint32 `[events + 1, G]`: number of nonzeros of each tensor that an event exchanges."""
        kept, rows = np.subtract(targets.sizes, targets.removals()).tolist(), []
        schedule = self.schedule
        assert schedule is not None  # these masks change in training
        for event in range(schedule.events + 1):
            progress = (schedule.start + event * schedule.frequency) / schedule.end
            fraction = self.drop_fraction * 0.5 * (1.0 + math.cos(math.pi * progress))
            rows.append([int(fraction * count) for count in kept])
        return np.array(rows, np.uint32)

    def recompute(
        self, state: PruneState, params: PyTree, grads: PyTree | None, event: Any
    ) -> Arrays:
        """Return the active masks after dropping and growing."""
        active, _ = self.split(state.masks)
        targets = self.targets(active)
        removed = jnp.asarray(targets.removals(), jnp.uint32)
        weights = pick(params, active)
        # Below every magnitude, so that pruned weights count as removed first.
        kept = [
            jnp.where(mask != 0, size, jnp.float32(-1.0))
            for size, mask in zip(ranking.magnitudes(weights), active.values(), strict=True)
        ]
        drops = jnp.asarray(self.drops(targets))[event]
        survivors = ranking.prune_smallest(kept, removed + drops, targets.groups)
        if self.growth == "random":
            growth = ranking.random_scores(state.extras["seed"], event, weights)
        elif grads is not None:
            growth = ranking.magnitudes(pick(grads, active))
        else:
            raise ConfigError(f"pruner {self.name!r} ranks gradients; give it grads")
        pairs = zip(growth, survivors, strict=True)
        safe = [jnp.where(mask != 0, jnp.float32(jnp.inf), score) for score, mask in pairs]
        return ranking.prune_smallest(safe, removed, targets.groups)
