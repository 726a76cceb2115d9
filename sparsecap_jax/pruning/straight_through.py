"""Magnitude masks with a straight-through gradient: pruned weights train on and may come back.

References:
    Bengio, Leonard and Courville, "Estimating or propagating gradients through stochastic neurons
    for conditional computation" (2013), arXiv 1308.3432.
    Lee et al., "JaxPruner" (2023), arXiv 2304.14082.
"""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array

from sparsecap_jax.pruning.base import PruneState
from sparsecap_jax.pruning.masks import apply_straight_through
from sparsecap_jax.pruning.ranked import Scheduled
from sparsecap_jax.pruning.schedules import Polynomial, constant_schedule
from sparsecap_jax.pruning.targets import Distribution
from sparsecap_jax.types import PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class MagnitudeSTE(Scheduled):
    """The whole target from the start; masks are ranked anew after every `frequency` steps.

    The model sees masked weights; all weights get the gradient of the masked ones.

    Attributes:
        distribution: `uniform` or `erk`; see `targets`.
        frequency: steps between rankings; 1 is the method as published.
    """

    distribution: Distribution = "uniform"
    frequency: int | None = 1

    keeps_pruned: ClassVar[bool] = True

    @property
    def spread(self) -> Distribution:
        """How the target is spread over the tensors."""
        return self.distribution

    @property
    def schedule(self) -> Polynomial:
        """The same target at every event."""
        start, every = self.start_step or 0, self.frequency or 1
        events = (self.total_steps - start) // every if self.events is None else self.events
        return constant_schedule(self.sparsity, start, every, events)

    def init(self, rng: Array, params: PyTree) -> PruneState:
        """Masks by the magnitudes of the initial weights."""
        state = super().init(rng, params)
        return self.put(state, self.rank(state, params, None))

    def scores(
        self, state: PruneState, weights: list[Array], grads: list[Array] | None, event: Any
    ) -> list[Array]:
        """|weight|."""
        return [jnp.abs(weight) for weight in weights]

    def apply(self, params: PyTree, binary: PyTree) -> PyTree:
        """Masked parameters, with a gradient for pruned weights too."""
        return apply_straight_through(params, binary)
