"""Methods that rank: each is a score function with the settings of `Ranked`.

References:
    Frankle and Carbin, "The lottery ticket hypothesis" (2019), arXiv 1803.03635.
    Zhu and Gupta, "To prune, or not to prune" (2017), arXiv 1710.01878 (gradual magnitude).
    Bengio, Leonard and Courville, "Estimating or propagating gradients through stochastic neurons
    for conditional computation" (2013), arXiv 1308.3432 (straight-through).
    Lee et al., "JaxPruner: a concise library for sparsity research" (2023), arXiv 2304.14082.
"""

import dataclasses
from typing import Annotated, ClassVar

from sparsecap_jax.pruning import scores as scores_lib
from sparsecap_jax.pruning.masks import apply_straight_through
from sparsecap_jax.pruning.ranked import Arrays, Ranked, When
from sparsecap_jax.pruning.schedules import Polynomial
from sparsecap_jax.settings import Range
from sparsecap_jax.types import PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Magnitude(Ranked):
    """The smallest weights are pruned while the model trains.

    Attributes:
        normalize: divide each tensor's scores by their norm, as jaxpruner's global methods do.
        standardize: subtract each tensor's mean and divide by its standard deviation first.
    """

    normalize: bool = False
    standardize: bool = False

    def scores(self, state, weights, grads, event) -> Arrays:
        """Return |weight|, normalized or standardized."""
        if self.standardize:
            return scores_lib.standardized_magnitudes(weights)
        scores = scores_lib.magnitudes(weights)
        return scores_lib.normalized(scores) if self.normalize else scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneShotMagnitude(Ranked):
    """The smallest weights of a trained model are pruned at once; masks then stay fixed.

    Attributes:
        standardize: see `Magnitude`.
        rewinds: whether training starts from the initial weights (lottery tickets) instead of the
            trained ones.
    """

    standardize: bool = False
    rewinds: bool = False

    when: ClassVar[When] = "before"
    normalize: ClassVar[bool] = False
    expects_trained: ClassVar[bool] = True

    scores = Magnitude.scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class MagnitudeSTE(Ranked):
    """The whole target from the start; masks are ranked anew after every `frequency` steps.

    The model sees masked weights; all weights get the gradient of the masked ones, so that pruned
    weights are trained and may come back.

    Attributes:
        frequency: steps between rankings; 1 is the method as published.
    """

    frequency: Annotated[int | None, Range(1)] = 1

    when: ClassVar[When] = "periodic"
    starts_sparse: ClassVar[bool] = True
    keeps_pruned: ClassVar[bool] = True

    @property
    def schedule(self) -> Polynomial:
        """The whole target at every event; by default until training ends."""
        start, every = self.start_step or 0, self.frequency or 1
        events = (self.total_steps - start) // every if self.events is None else self.events
        return Polynomial(start, every, events, initial=self.sparsity, final=self.sparsity)

    def scores(self, state, weights, grads, event) -> Arrays:
        """Return |weight|."""
        return scores_lib.magnitudes(weights)

    def apply(self, params: PyTree, binary: PyTree) -> PyTree:
        """Return masked parameters with a gradient for pruned weights too."""
        return apply_straight_through(params, binary)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Saliency(Ranked):
    """The weights whose removal changes the loss least, to first order, are pruned.

    In training, the gradient is that of the step that an event falls on; a pruned weight has none
    and stays pruned. SNIP is this method before training, ranked over all tensors.

    Attributes:
        normalize: divide each tensor's scores by their norm, as jaxpruner's global methods do.
        num_batches: batches whose gradients are added up where masks are found `before` training.
        reference_signed: rank signed products as the PyTorch reference does; see
            `scores.signed_saliencies`.
    """

    normalize: bool = False
    num_batches: Annotated[int, Range(1)] = 1
    reference_signed: bool = False

    def scores(self, state, weights, grads, event) -> Arrays:
        """Return |gradient x weight|, or their signed products."""
        if self.reference_signed:
            return scores_lib.signed_saliencies(weights, grads)
        scores = scores_lib.saliencies(weights, grads)
        return scores_lib.normalized(scores) if self.normalize else scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class Random(Ranked):
    """Random weights are pruned: a baseline. Pruned weights stay pruned."""

    draws: ClassVar[bool] = True

    def scores(self, state, weights, grads, event) -> Arrays:
        """Return uniform scores in (0, 1), and 0 for weights that are pruned already."""
        masks = self.split(state.masks)[0].values()
        drawn = scores_lib.random_scores(state.extras["seed"], event, weights)
        return [score * mask for score, mask in zip(drawn, masks, strict=True)]
