"""Pruning methods: a score function with the settings of `Ranked` each, and fixed masks.

References:
    Frankle and Carbin, "The lottery ticket hypothesis" (2019), arXiv 1803.03635.
    Zhu and Gupta, "To prune, or not to prune" (2017), arXiv 1710.01878 (gradual magnitude).
    Bengio, Leonard and Courville, "Estimating or propagating gradients through stochastic neurons
    for conditional computation" (2013), arXiv 1308.3432 (straight-through).
    Lee et al., "JaxPruner: a concise library for sparsity research" (2023), arXiv 2304.14082.
    Lee, Ajanthan and Torr, "SNIP: single-shot network pruning based on connection sensitivity"
    (2019), arXiv 1810.02340, equations 5 and 6.
    Molchanov et al., "Importance estimation for neural network pruning" (2019), arXiv 1906.10771
    (saliency: |gradient x weight|).
"""

import dataclasses
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning import ranking
from sparsecap_jax.pruning.base import GradFn, Pruner, PruneState, Target
from sparsecap_jax.pruning.masks import apply_straight_through, sparsity
from sparsecap_jax.pruning.paths import by_path, replaced
from sparsecap_jax.pruning.ranked import Arrays, Ranked, When
from sparsecap_jax.pruning.targets import Polynomial
from sparsecap_jax.settings import Range
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
    fixed_masks: ClassVar[bool] = True

    def prepare(
        self, state: PruneState, params: PyTree, grad_fn: GradFn = None, batches: Iterable[Any] = ()
    ) -> PruneState:
        """Read the masks off the weights unless masks were loaded.

        Raises:
            ConfigError: the model is not pruned, or its nonzeros are more than 5 % off the target.
        """
        masks = by_path(state.masks)
        if all(bool(jnp.all(mask == 1)) for mask in masks.values()):
            leaves = by_path(params)
            masks = {path: (leaves[path] != 0).astype(jnp.float32) for path in masks}
        pruned = sparsity(replaced(state.masks, masks)).prunable
        if pruned == 0:
            raise ConfigError(
                f"pruner.name is {self.name!r}, but the model to start from is dense: it has "
                "neither masks nor zero weights"
            )
        if self.sparsity and abs(self.sparsity - pruned) > 0.05 * (1.0 - self.sparsity):
            raise ConfigError(
                f"pruner.sparsity is {self.sparsity}, but the model to start from has {pruned:.4f}"
            )
        return state.replace(masks=replaced(state.masks, masks))

    def reached(self, binary: PyTree, tolerance: float = 0.05) -> bool:
        """As in `Pruner`; always True where no target is set."""
        return not self.sparsity or super().reached(binary, tolerance)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Magnitude(Ranked):
    """The smallest weights are pruned while the model trains.

    Attributes:
        normalize: divide each tensor's scores by their norm, as jaxpruner's global methods do.
        standardize: subtract each tensor's mean and divide by its standard deviation first.
    """

    normalize: bool = False
    standardize: bool = False

    def scores(
        self, state: PruneState, weights: Arrays, grads: Arrays | None, event: Any
    ) -> Arrays:
        """Return |weight|, normalized or standardized."""
        if self.standardize:
            return ranking.standardized_magnitudes(weights)
        scores = ranking.magnitudes(weights)
        return ranking.normalized(scores) if self.normalize else scores


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
    initial_sparsity: ClassVar[float] = 0.0
    starts_sparse: ClassVar[bool] = True
    keeps_pruned: ClassVar[bool] = True

    apply = staticmethod(apply_straight_through)

    @property
    def schedule(self) -> Polynomial:
        """The whole target at every event; by default until training ends."""
        start, every = self.start_step or 0, self.frequency or 1
        events = (self.total_steps - start) // every if self.events is None else self.events
        return Polynomial(start, every, events, initial=self.sparsity, final=self.sparsity)

    def scores(
        self, state: PruneState, weights: Arrays, grads: Arrays | None, event: Any
    ) -> Arrays:
        """Return |weight|."""
        return ranking.magnitudes(weights)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Saliency(Ranked):
    """The weights whose removal changes the loss least, to first order, are pruned.

    In training, the gradient is that of the step that an event falls on; a pruned weight has none
    and stays pruned. SNIP is this method before training, ranked over all tensors.

    Attributes:
        normalize: divide each tensor's scores by their norm, as jaxpruner's global methods do.
        num_batches: batches whose gradients are added up where masks are found `before` training.
        reference_signed: rank gradient x weight divided by its sum over all tensors, sign
            included, as the PyTorch reference does.
    """

    normalize: bool = False
    num_batches: Annotated[int, Range(1)] = 1
    reference_signed: bool = False

    def scores(
        self, state: PruneState, weights: Arrays, grads: Arrays | None, event: Any
    ) -> Arrays:
        """Return |gradient x weight|, or their products, negated where the sum is negative."""
        assert grads is not None  # as num_batches is at least 1
        products = [g * w for g, w in zip(grads, weights, strict=True)]
        if self.reference_signed:
            total = sum(jnp.sum(product) for product in products)
            return [jnp.where(total < 0, -product, product) for product in products]
        scores = ranking.magnitudes(products)
        return ranking.normalized(scores) if self.normalize else scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class Random(Ranked):
    """Random weights are pruned: a baseline. Pruned weights stay pruned."""

    draws: ClassVar[bool] = True

    def scores(
        self, state: PruneState, weights: Arrays, grads: Arrays | None, event: Any
    ) -> Arrays:
        """Return uniform scores in (0, 1), and 0 for weights that are pruned already."""
        masks = self.split(state.masks)[0].values()
        drawn = ranking.random_scores(state.extras["seed"], event, weights)
        return [score * mask for score, mask in zip(drawn, masks, strict=True)]
