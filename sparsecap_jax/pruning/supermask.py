"""Supermask pruning: one trained logit per weight, pushed to the target by a sparsity loss."""

import dataclasses
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from sparsecap_jax.pruning.base import Pruner, Scalar
from sparsecap_jax.pruning.paths import nest
from sparsecap_jax.pruning.sampling import kept_fraction, rounded, sample_all
from sparsecap_jax.settings import Range
from sparsecap_jax.types import PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Supermask(Pruner):
    """Masks drawn from trained logits, straight-through, with an annealed sparsity loss.

        loss(t) = weight * |target - s| * (1 - (1 + cos(pi * min(1, t / T))) / 2)

    s is the sparsity of the rounded active masks. Leaves with a sparsity of their own (`overrides`)
    have a gap of their own; gaps are averaged, each weighted by its number of masks. Frozen masks
    are rounded, never drawn. The logits want an Adam group of their own with a large step
    (learning rate 100, epsilon 1e-2).

    Attributes:
        init_value: logit that every mask starts with.
        sparsity_weight: weight of the sparsity loss; None: max(5, weight_scale / (1 - sparsity)).
        weight_scale: 0.5 suits recurrent captioners, 1.5 transformers.
        bypass_sigmoid_grad: let the straight-through gradient bypass the sigmoid.

    References:
        Tan, Tan, Tan and Chan, "End-to-end supermask pruning: learning to prune image captioning
        models", Pattern Recognition 122 (2022), arXiv 2110.03298.
    """

    init_value: float = 5.0
    sparsity_weight: Annotated[float | None, Range(0)] = None
    weight_scale: Annotated[float, Range(0)] = 0.5
    bypass_sigmoid_grad: bool = False

    trains_masks: ClassVar[bool] = True

    @property
    def loss_weight(self) -> float:
        """Weight of the sparsity loss: `sparsity_weight` or its default."""
        if self.sparsity_weight is not None:
            return self.sparsity_weight
        return max(5.0, self.weight_scale / (1.0 - self.sparsity))

    def _binary(self, masks: PyTree, drawn: Any) -> PyTree:
        """Return `drawn(logits)` for active masks; frozen ones rounded, without a gradient."""
        active, frozen = self.split(masks)
        logits = [jnp.asarray(value, jnp.float32) for value in active.values()]
        binary = dict(zip(active, drawn(logits), strict=True))
        for path, value in frozen.items():
            binary[path] = jax.lax.stop_gradient((value > 0).astype(jnp.float32))
        return nest({path: binary[path] for path in sorted(binary)})

    def sample(self, masks: PyTree, rng: Array | None = None) -> PyTree:
        """Draw Bernoulli(sigmoid(logit)) masks for a whole step, straight-through."""
        return self._binary(masks, lambda zs: sample_all(zs, rng, self.bypass_sigmoid_grad))

    def binarize(self, masks: PyTree) -> PyTree:
        """Round sigmoid(logit), logit 0 to 0, straight-through."""
        return self._binary(masks, lambda zs: [rounded(z, self.bypass_sigmoid_grad) for z in zs])

    def penalty(self, masks: PyTree, step: Any) -> tuple[Scalar, dict[str, Scalar]]:
        """Sparsity loss of the active masks.

        Returns:
            The weighted, annealed loss, float32; and `sparsity` (of the active rounded masks),
            `sparsity_gap` (its distance from the target) and `anneal_rate` (1 at the start, 0 at
            the end) to log.
        """
        active, _ = self.split(masks)
        if not active:
            return jnp.zeros((), jnp.float32), {}
        targets = self.targets(active)
        now, gap = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32)
        for group, target in enumerate(targets.sparsities):
            members = zip(active.values(), targets.groups, strict=True)
            logits = [mask for mask, g in members if g == group]
            sparse = 1.0 - kept_fraction(logits, self.bypass_sigmoid_grad)
            share = jnp.float32(targets.sizes[group] / sum(targets.sizes))
            now += share * sparse
            gap += share * jnp.abs(jnp.float32(target) - sparse)
        progress = jnp.minimum(1.0, jnp.asarray(step, jnp.float32) / self.total_steps)
        rate = (1.0 + jnp.cos(progress * jnp.float32(jnp.pi))) / 2.0
        loss = gap * jnp.float32(self.loss_weight) * (1.0 - rate)
        return loss, {"sparsity": now, "sparsity_gap": gap, "anneal_rate": rate}
