"""Dense-to-sparse methods of jaxpruner: by magnitude, by saliency, at random.

References:
    Lee et al., "JaxPruner: a concise library for sparsity research" (2023), arXiv 2304.14082.
    Zhu and Gupta, "To prune, or not to prune" (2017), arXiv 1710.01878 (magnitude).
    Molchanov et al., "Importance estimation for neural network pruning" (2019), arXiv 1906.10771
    (saliency: |gradient x weight|).
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning.base import PruneState
from sparsecap_jax.pruning.magnitude import fixed_order_sum
from sparsecap_jax.pruning.masks import apply_masks
from sparsecap_jax.pruning.ranked import Scheduled
from sparsecap_jax.pruning.schedules import Polynomial, constant_schedule, one_shot_schedule
from sparsecap_jax.pruning.snip import summed_gradients
from sparsecap_jax.pruning.targets import Distribution
from sparsecap_jax.types import PyTree

When = Literal["polynomial", "periodic", "one_shot", "before"]


def normalised(scores: Sequence[Float[Array, "..."]]) -> list[Float[Array, "..."]]:
    """Scores divided by the norm of their tensor (and 1e-8), for rankings over all tensors.

    Args:
        scores: float32 tensors of any shape.

    Returns:
        float32 tensors of the same shapes.
    """
    norms = [jnp.sqrt(fixed_order_sum(jax.lax.optimization_barrier(s * s))) for s in scores]
    return [s / (norm + jnp.float32(1e-8)) for s, norm in zip(scores, norms, strict=True)]


def random_scores(
    seed: UInt32[Array, "2"], event: Any, tensors: Sequence[Float[Array, "..."]]
) -> list[Float[Array, "..."]]:
    """Uniform random scores; the same on any number of devices.

    Args:
        seed: uint32 `[2]`, from `random_seed`.
        event: int32 scalar, folded in.
        tensors: of the shapes wanted.

    Returns:
        float32 in (0, 1), one tensor for each.
    """
    key = jax.random.fold_in(jax.random.wrap_key_data(seed, impl="threefry2x32"), event)
    tiny = jnp.finfo(jnp.float32).tiny
    return [
        jax.random.uniform(jax.random.fold_in(key, number), tensor.shape, jnp.float32, tiny)
        for number, tensor in enumerate(tensors)
    ]


def random_seed(rng: Array) -> UInt32[Array, "2"]:
    """What `random_scores` starts from: plain numbers, which every checkpoint can hold."""
    return jax.random.bits(rng, (2,), jnp.uint32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored(Scheduled):
    """Masks by scores, on one of four schedules.

    Attributes:
        distribution: `uniform` or `erk`; see `targets`. The global methods have none.
        when: `polynomial` (the cubic rise), `periodic` (the whole target at every event),
            `one_shot` (at `start_step`), or `before` training.
    """

    distribution: Distribution = "uniform"
    when: When = "polynomial"

    @property
    def spread(self) -> Distribution:
        """How the target is spread over the tensors."""
        return self.distribution

    @property
    def schedule(self) -> Polynomial:
        """When masks change and to which sparsity."""
        rising = super().schedule
        if self.when == "polynomial":
            return rising
        if self.when == "periodic":
            return constant_schedule(self.sparsity, rising.start, rising.frequency, rising.events)
        return one_shot_schedule(self.sparsity, rising.start if self.when == "one_shot" else -1)

    def prepare(
        self,
        state: PruneState,
        params: PyTree,
        grad_fn: Callable[[PyTree, Any], PyTree] | None = None,
        batches: Iterable[Any] = (),
    ) -> PruneState:
        """Compute the masks where that shall happen `before` training."""
        if self.when != "before" or not self.split(state.masks)[0]:
            return state
        grads = None
        if self.batches_needed:
            masked = apply_masks(params, state.masks)
            grads = summed_gradients(self.name, masked, grad_fn, batches, self.batches_needed)
        return self.put(state, self.rank(state, params, grads))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Magnitude(Scored):
    """|weight|.

    Attributes:
        normalize: divide each tensor's scores by their norm, as jaxpruner's global methods do.
    """

    normalize: bool = False

    def scores(
        self, state: PruneState, weights: list[Array], grads: list[Array] | None, event: Any
    ) -> list[Array]:
        """|weight|."""
        scores = [jnp.abs(weight) for weight in weights]
        return normalised(scores) if self.normalize else scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class Saliency(Scored):
    """|gradient x weight|, with the gradient of the step that the event falls on.

    A pruned weight has no gradient and stays pruned.

    Attributes:
        normalize: divide each tensor's scores by their norm, as jaxpruner's global methods do.
        num_batches: batches whose gradients are added up where masks are found `before` training.
    """

    normalize: bool = False
    num_batches: int = 1

    def __post_init__(self):
        super().__post_init__()
        if self.num_batches < 1:
            raise ConfigError(f"pruner.num_batches is {self.num_batches}; expected at least 1")

    @property
    def batches_needed(self) -> int:
        """How many batches `prepare` takes gradients of."""
        return self.num_batches if self.when == "before" else 0

    def scores(
        self, state: PruneState, weights: list[Array], grads: list[Array] | None, event: Any
    ) -> list[Array]:
        """|gradient x weight|."""
        if grads is None:
            raise ConfigError(f"pruner {self.name!r} ranks gradients; give it grads")
        scores = [jnp.abs(g * w) for g, w in zip(grads, weights, strict=True)]
        return normalised(scores) if self.normalize else scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class Random(Scored):
    """Random scores: a baseline. What is pruned stays pruned."""

    def init(self, rng: Array, params: PyTree) -> PruneState:
        """Fresh masks, and the seed of the scores."""
        return super().init(rng, params).replace(extras={"seed": random_seed(rng)})

    def scores(
        self, state: PruneState, weights: list[Array], grads: list[Array] | None, event: Any
    ) -> list[Array]:
        """Uniform in (0, 1), and 0 for what is pruned already."""
        flat = self.split(state.masks)[0].values()
        drawn = random_scores(state.extras["seed"], event, weights)
        return [score * mask for score, mask in zip(drawn, flat, strict=True)]
