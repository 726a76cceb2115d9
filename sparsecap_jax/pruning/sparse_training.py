"""Sparse from the start: random masks, fixed (static) or rewired during training (SET, RigL).

References:
    Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse
    connectivity inspired by network science" (2018), arXiv 1707.04780 (SET).
    Evci et al., "Rigging the lottery: making all tickets winners" (2020), arXiv 1911.11134 (RigL).
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning.base import PruneState
from sparsecap_jax.pruning.masks import apply_masks, apply_straight_through
from sparsecap_jax.pruning.ranked import AtEvents, Ranked, pick
from sparsecap_jax.pruning.ranking import prune_smallest
from sparsecap_jax.pruning.schedules import Polynomial, constant_schedule
from sparsecap_jax.pruning.scored import random_scores, random_seed
from sparsecap_jax.pruning.targets import Distribution, Targets
from sparsecap_jax.settings import Range, check_range
from sparsecap_jax.types import PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class StaticSparse(Ranked):
    """Random masks at initialisation, which stay.

    Attributes:
        distribution: `uniform` or `erk`; see `targets`.
    """

    distribution: Distribution = "uniform"
    hard_zero: bool = True

    @property
    def spread(self) -> Distribution:
        """How the target is spread over the tensors."""
        return self.distribution

    def init(self, rng: Array, params: PyTree) -> PruneState:
        """Random masks of the target sparsity, and the seed they come from."""
        state = super().init(rng, params).replace(extras={"seed": random_seed(rng)})
        return self.put(state, self.rank(state, params, None, event=-1))

    def scores(
        self, state: PruneState, weights: list[Array], grads: list[Array] | None, event: Any
    ) -> list[Array]:
        """Uniform in (0, 1)."""
        return random_scores(state.extras["seed"], jnp.asarray(event, jnp.int32), weights)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SET(StaticSparse, AtEvents):
    """At each event the smallest weights of a tensor are dropped, as many grow at random.

    The number of nonzeros of each tensor never changes. Grown weights start at 0, without
    momentum. A dropped weight may grow again at once.

    Attributes:
        drop_fraction: fraction of a tensor's nonzeros that the first event exchanges; it falls to
            0 along a half cosine until the last event.
    """

    drop_fraction: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        check_range("pruner.drop_fraction", self.drop_fraction, Range(0.0, 1.0))
        if self.sparsity_type != "unstructured":
            raise ConfigError(
                f"pruner.sparsity_type is {self.sparsity_type!r}; {self.name!r} rewires single "
                "weights: expected 'unstructured'"
            )
        if self.distribution == "global":
            raise ConfigError("pruner.distribution is 'global'; expected 'uniform' or 'erk'")

    @property
    def schedule(self) -> Polynomial:
        """When masks change."""
        found = super().schedule
        return constant_schedule(self.sparsity, found.start, found.frequency, found.events)

    def drops(self, targets: Targets) -> np.ndarray:
        """uint32 `[events + 1, G]`: how many nonzeros of each tensor every event exchanges."""
        schedule = self.schedule
        pairs = list(zip(targets.sizes, targets.removals(), strict=True))
        rows = []
        for event in range(schedule.events + 1):
            progress = (schedule.start + event * schedule.frequency) / schedule.end
            fraction = self.drop_fraction * 0.5 * (1.0 + math.cos(math.pi * progress))
            rows.append([int(fraction * (size - removed)) for size, removed in pairs])
        return np.array(rows, np.uint32).reshape(-1, len(pairs))

    def growth(
        self, state: PruneState, weights: list[Array], grads: list[Array] | None, event: Any
    ) -> list[Array]:
        """Scores of what may grow; the highest do. Uniform in (0, 1)."""
        return random_scores(state.extras["seed"], event, weights)

    def recompute(
        self, state: PruneState, params: PyTree, grads: PyTree | None, targets: Targets, event: Any
    ) -> list[Array]:
        """Drop and grow."""
        active, _ = self.split(state.masks)
        removed = jnp.asarray(targets.removals(), jnp.uint32)
        drops = jnp.asarray(self.drops(targets))
        weights = pick(params, active)
        slopes = None if grads is None else pick(grads, active)
        pairs = zip(weights, active.values(), strict=True)
        # Below every magnitude, so that what is pruned counts as removed first.
        kept = [jnp.where(mask != 0, jnp.abs(w), jnp.float32(-1.0)) for w, mask in pairs]
        survivors = prune_smallest(kept, removed + drops[event], targets.groups)
        grown = self.growth(state, weights, slopes, event)
        pairs = zip(grown, survivors, strict=True)
        safe = [jnp.where(mask != 0, jnp.float32(jnp.inf), score) for score, mask in pairs]
        return prune_smallest(safe, removed, targets.groups)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RigL(SET):
    """As SET, but what grows is what has the largest gradient.

    The training step differentiates by pruned weights too (`apply`), `update` reads these
    gradients, and the optimizer gets those of the kept weights alone (`gradients`).
    """

    def apply(self, params: PyTree, binary: PyTree) -> PyTree:
        """Masked parameters, with a gradient for pruned weights too."""
        return apply_straight_through(params, binary)

    def gradients(self, grads: PyTree, masks: PyTree) -> PyTree:
        """The gradients of the kept weights; zeros for the others."""
        return apply_masks(grads, masks)

    def growth(
        self, state: PruneState, weights: list[Array], grads: list[Array] | None, event: Any
    ) -> list[Array]:
        """|gradient|."""
        if grads is None:
            raise ConfigError(f"pruner {self.name!r} ranks gradients; give it grads")
        return [jnp.abs(grad) for grad in grads]
