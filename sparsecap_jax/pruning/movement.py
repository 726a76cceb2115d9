"""Movement pruning: weights that move towards 0 go, by scores that are trained along with them.

The model sees W * M. The score S of a weight gets the gradient of its mask as if that were the
score itself (straight-through), whether the weight is pruned or not:

    dL/dS = dL/d(W * M) * W,   dL/dW = dL/d(W * M) * M

so that under SGD S sums up -rate * W * dL/d(W * M), which grows while a weight moves away from 0.
Masks of state hold scores less the cut between kept and pruned ones: positive scores are kept.

References:
    Sanh, Wolf and Rush, "Movement pruning: adaptive sparsity by fine-tuning" (2020), arXiv
    2005.07683, sections 3 and 4. The authors train scores by Adam at a rate of 1e-2 from 0, with
    the threshold of the soft form at 0.1 (their code in huggingface/transformers).
    Bengio, Leonard and Courville, "Estimating or propagating gradients through stochastic neurons
    for conditional computation" (2013), arXiv 1308.3432 (straight-through).
"""

import dataclasses
import math
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from sparsecap_jax.pruning.base import Pruner, PruneState, Scalar, Target
from sparsecap_jax.pruning.paths import replaced
from sparsecap_jax.pruning.ranked import Arrays, Ranked, When
from sparsecap_jax.pruning.supermask import rounded
from sparsecap_jax.settings import Range
from sparsecap_jax.types import PyTree

# Adam's rate and epsilon.
_SCORES = (1e-2, 1e-8)


def _binary(pruner: Pruner, scores: PyTree) -> PyTree:
    """Return 1 for positive scores, straight-through for the active ones, 0 for others."""
    active, frozen = pruner.split(scores)
    masks = {path: rounded(jnp.asarray(s, jnp.float32), True) for path, s in active.items()}
    masks |= {path: (s > 0).astype(jnp.float32) for path, s in frozen.items()}
    return replaced(scores, masks)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Movement(Ranked):
    """The weights with the lowest scores are pruned while the model trains: M = Top_v(S).

    v falls along the schedule of gradual magnitude, and then stays. The masks follow the scores
    until training ends.

    Attributes:
        rank_every: steps between rankings, besides those at events of the schedule and after the
            last step. In between a mask changes where its score crosses the last cut, so that the
            sparsity is near its target. 1 is the method as published.

    Cost: a ranking every `rank_every` steps, and Adam's update of the scores. Memory: scores, their
    gradients and two moments, as supermasks have.
    """

    rank_every: Annotated[int, Range(1)] = 1

    sparsity_type: ClassVar[str] = "unstructured"
    sparsity_axis: ClassVar[int] = -1
    when: ClassVar[When] = "polynomial"
    trains_masks: ClassVar[bool] = True
    mask_optimizer: ClassVar[tuple[float, float]] = _SCORES

    instant_sparsify = Pruner.instant_sparsify

    def scores(
        self, state: PruneState, weights: Arrays, grads: Arrays | None, event: Any
    ) -> Arrays:
        """Return the scores."""
        return list(self.split(state.masks)[0].values())

    def sample(self, masks: PyTree, rng: Array | None = None) -> PyTree:
        """Return 1 where a score is positive, straight-through."""
        return _binary(self, masks)

    def binarize(self, masks: PyTree) -> PyTree:
        """Return 1 where a score is positive."""
        return _binary(self, masks)

    def update(
        self, state: PruneState, params: PyTree, grads: PyTree | None, step: Any, rng: Any = None
    ) -> PruneState:
        """Shift the scores so that as many as the schedule wants are above 0."""
        active, _ = self.split(state.masks)
        if not active:
            return state
        step = jnp.asarray(step, jnp.int32)
        schedule: Any = self.schedule  # masks tighten in training, so that there is one
        due, event = schedule.locate(step)
        due |= (step % self.rank_every == 0) | (step >= self.total_steps)
        removes = schedule.table(self.targets(active)).any(1)
        due |= jnp.asarray(~removes)[event]  # else scores would cross 0 before anything should go
        scores = lax.cond(
            due, lambda: self.recompute(state, params, grads, event), lambda: list(active.values())
        )
        return self.put(state, scores)

    def recompute(
        self, state: PruneState, params: PyTree, grads: PyTree | None, event: Any
    ) -> Arrays:
        """Return the scores less the cut that the event wants."""
        scores = list(self.split(state.masks)[0].values())
        masks = self.rank(state, params, grads, event, self.schedule)
        groups = self.targets(self.split(state.masks)[0]).groups
        cuts = [_cut(scores, masks, groups, group) for group in range(max(groups) + 1)]
        tiny = jnp.float32(1e-30)  # of equal scores some are kept, some not
        return [
            jnp.where(mask != 0, jnp.maximum(s - cuts[g], tiny), jnp.minimum(s - cuts[g], 0))
            for s, mask, g in zip(scores, masks, groups, strict=True)
        ]


def _cut(scores: Arrays, masks: Arrays, groups: tuple[int, ...], group: int) -> Array:
    """Return a number between the highest pruned and the lowest kept score of a group.

    Where nothing is pruned it is 1 below them all, out of the reach of a step.
    """
    members = [(s, m) for s, m, g in zip(scores, masks, groups, strict=True) if g == group]
    infinity = jnp.float32(jnp.inf)
    pruned = [jnp.max(jnp.where(m == 0, s, -infinity)) for s, m in members]
    kept = [jnp.min(jnp.where(m != 0, s, infinity)) for s, m in members]
    highest, lowest = jnp.max(jnp.stack(pruned)), jnp.min(jnp.stack(kept))
    return jnp.where(highest == -infinity, lowest - 1.0, (highest + lowest) / 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftMovement(Pruner):
    """Weights whose score is below a threshold are pruned, and a penalty lowers all scores.

        M = 1 if sigmoid(S) > threshold else 0,   loss = sparsity_weight * mean of sigmoid(S)

    There is no target: threshold and penalty decide how sparse a model becomes. The gradient of
    the penalty is spread over all scores, so that large models want a large weight, 400 for BERT.

    Attributes:
        sparsity: expected sparsity, which the best checkpoint must have; 0 accepts any.
        threshold: of the sigmoid; scores start at 0, where the sigmoid is 0.5.
        sparsity_weight: weight of the penalty.

    Cost: Adam's update of the scores. Memory: as `Movement`.
    """

    sparsity: Target = 0.0
    threshold: Annotated[float, Range(0, 0.5, open_low=True, open_high=True)] = 0.1
    sparsity_weight: Annotated[float, Range(0)] = 10.0

    trains_masks: ClassVar[bool] = True
    mask_optimizer: ClassVar[tuple[float, float]] = _SCORES

    sample = Movement.sample
    binarize = Movement.binarize

    @property
    def init_value(self) -> float:
        """Distance of the first scores from the threshold."""
        return math.log(1.0 / self.threshold - 1.0)

    def penalty(self, masks: PyTree, step: Any) -> tuple[Scalar, dict[str, Scalar]]:
        """Return the weighted mean of sigmoid(score) over the active masks, and nothing to log."""
        active, _ = self.split(masks)
        if not active:
            return jnp.zeros((), jnp.float32), {}
        start = jnp.float32(self.init_value)
        total = sum(jnp.sum(jax.nn.sigmoid(scores - start)) for scores in active.values())
        size = sum(scores.size for scores in active.values())
        return jnp.float32(self.sparsity_weight) * total / jnp.float32(size), {}

    def reached(self, binary: PyTree, tolerance: float = 0.05) -> bool:
        """As in `Pruner`; always True where no target is set."""
        return not self.sparsity or super().reached(binary, tolerance)
