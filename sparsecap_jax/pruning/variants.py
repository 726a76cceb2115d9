"""Methods with masks that come and go: random straight-through, and alternating phases."""

import dataclasses
from typing import Annotated, Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning import ranking
from sparsecap_jax.pruning.base import PruneState
from sparsecap_jax.pruning.masks import apply_straight_through
from sparsecap_jax.pruning.methods import MagnitudeSTE
from sparsecap_jax.pruning.ranked import Arrays, Ranked, When
from sparsecap_jax.pruning.rewiring import StaticSparse
from sparsecap_jax.pruning.targets import Targets
from sparsecap_jax.settings import Range


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomSTE(Ranked):
    """New random masks after every `frequency` steps, straight-through: a baseline.

    All weights get the gradient of the masked ones, and are trained.

    Attributes:
        frequency: steps between draws; 1 is the method of jaxpruner.

    References:
        Bengio, Leonard and Courville, "Estimating or propagating gradients through stochastic
        neurons for conditional computation" (2013), arXiv 1308.3432.

    Cost: a random number a weight, and a ranking, at every event. Memory: that of the masks.
    """

    frequency: Annotated[int | None, Range(1)] = 1

    when: ClassVar[When] = "periodic"
    initial_sparsity: ClassVar[float] = 0.0
    starts_sparse: ClassVar[bool] = True
    keeps_pruned: ClassVar[bool] = True
    draws: ClassVar[bool] = True

    apply = staticmethod(apply_straight_through)
    schedule = MagnitudeSTE.schedule
    scores = StaticSparse.scores


@dataclasses.dataclass(frozen=True)
class Alternating:
    """Sparse phases of `sparse` steps and dense ones of `dense` steps, in turn.

    The first sparse phase begins after step `start`, the last after step `final`, and stays. Event
    e begins a sparse phase where e is even and a dense one where it is odd.
    """

    start: int
    sparse: int
    dense: int
    final: int

    @property
    def end(self) -> int:
        """Step of the last event."""
        return self.final

    @property
    def events(self) -> int:
        """Number of the last event; even."""
        return 2 * -(-(self.final - self.start) // (self.sparse + self.dense))

    def locate(self, step: Int[Array, ""]) -> tuple[Bool[Array, ""], Int[Array, ""]]:
        """Return whether `step` is an event, and the number of the last one up to it, or 0."""
        since = jnp.maximum(step - jnp.int32(self.start), 0)
        cycle, place = jnp.divmod(since, jnp.int32(self.sparse + self.dense))
        turns = (place == 0) | (place == self.sparse)
        due = ((step >= self.start) & (step < self.final) & turns) | (step == self.final)
        event = 2 * cycle + (place >= self.sparse)
        return due, jnp.where(step >= self.final, jnp.int32(self.events), event)

    def table(self, targets: Targets) -> np.ndarray:
        """Return uint32 `[events + 1, G]`: entries of each group that are gone after an event."""
        table = np.zeros((self.events + 1, len(targets.sizes)), np.uint32)
        table[::2] = targets.removals()
        return table


@dataclasses.dataclass(frozen=True, kw_only=True)
class ACDC(Ranked):
    """The smallest weights are pruned and let free again in turn; training ends pruned.

    A sparse phase begins with a ranking, and sets pruned weights to 0. In a dense phase all weights
    are trained; those that were pruned start from 0, without momentum.

    Attributes:
        start_step: step of the first pruning; None: after a tenth of training.
        sparse_steps: length of a sparse phase; None: a twentieth of training.
        dense_steps: length of a dense phase; None: likewise.
        final_step: step from which masks stay; None: after 85 % of training.

    References:
        Peste et al., "AC/DC: Alternating compressed/decompressed training of deep neural networks"
        (2021), arXiv 2106.12379, algorithm 1. The defaults are near its schedule for ImageNet.

    Cost: a ranking at the start of each phase, dense ones included; other steps cost what masks
    and `hard_zero` cost. Memory: that of the masks.
    """

    hard_zero: bool = True
    start_step: Annotated[int | None, Range(1)] = None
    sparse_steps: Annotated[int | None, Range(1)] = None
    dense_steps: Annotated[int | None, Range(1)] = None
    final_step: Annotated[int | None, Range(1)] = None

    when: ClassVar[When] = "periodic"
    initial_sparsity: ClassVar[float] = 0.0
    frequency: ClassVar[int | None] = None
    events: ClassVar[int | None] = None

    @property
    def schedule(self) -> Alternating:
        """The phases.

        Raises:
            ConfigError: they do not fit into training.
        """
        phase = max(1, self.total_steps // 20)
        start = max(1, self.total_steps // 10) if self.start_step is None else self.start_step
        final = self.final_step or self.total_steps - self.total_steps * 15 // 100
        if not start < final <= self.total_steps:
            raise ConfigError(
                f"pruner.final_step is {final}; expected more than start_step ({start}), and at "
                f"most the {self.total_steps} steps of training"
            )
        return Alternating(start, self.sparse_steps or phase, self.dense_steps or phase, final)

    def scores(
        self, state: PruneState, weights: Arrays, grads: Arrays | None, event: Any
    ) -> Arrays:
        """Return |weight|."""
        return ranking.magnitudes(weights)
