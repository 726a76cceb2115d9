"""Gradient accumulation: the update of a large batch, with the memory of a part of it.

The parts are computed one after the other within a step, under the same masks, so that pruners,
penalties and schedules count updates. `optax.MultiSteps` around the optimizer would let a pruner
sample, rank and penalise once for each part.
"""

import dataclasses
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from sparsecap_jax.pruning.step import Metrics
from sparsecap_jax.training.objectives import Objective
from sparsecap_jax.types import Batch, PyTree


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Accumulated(Objective):
    """An objective whose batches are computed in parts.

        loss = sum(w_i loss_i) / sum(w_i)        w_i = `Objective.part_weight` of part i

    Gradients likewise. Each part draws its own dropout and samples. The metric `caption_loss` is
    that mean, too; others are plain means over the parts.

    Attributes:
        inner: the objective.
        parts: number of parts.
    """

    inner: Objective
    parts: int

    @property
    def resources(self) -> PyTree:
        """Arrays of the objective inside."""
        return self.inner.resources

    def inputs(self, batches: Batch, step: int) -> tuple[PyTree, Hashable]:
        """Return the inputs of batches `[N, parts * B, ...]`; static sizes are those of a part."""
        shards, parts = self.task.local_shards, self.parts

        def cut(leaf):
            leaf = leaf.reshape(len(leaf), shards, parts, -1, *leaf.shape[2:]).swapaxes(1, 2)
            return leaf.reshape(-1, leaf.shape[2] * leaf.shape[3], *leaf.shape[4:])

        def join(leaf):
            leaf = leaf.reshape(-1, parts, shards, leaf.shape[1] // shards, *leaf.shape[2:])
            leaf = leaf.swapaxes(1, 2)
            return leaf.reshape(len(leaf), -1, *leaf.shape[4:])

        inputs, static = self.inner.inputs(jax.tree.map(cut, batches), step)
        return jax.tree.map(join, inputs), static

    def __call__(
        self,
        params: PyTree,
        evaluated: PyTree | None,
        inputs: Any,
        step: Any,
        rng: Array,
        static: Any = None,
        resources: PyTree = (),
    ) -> tuple[Array, PyTree, Metrics]:
        """Return loss, gradients and metrics of `inputs`, leaves `[parts * B, ...]`."""

        def cut(leaf):  # every device has a share of each part
            leaf = leaf.reshape(self.task.shards, self.parts, -1, *leaf.shape[1:]).swapaxes(0, 1)
            return leaf.reshape(self.parts, -1, *leaf.shape[3:])

        def add(sums, part):
            inputs, rng = part
            loss, grads, metrics = self.inner(
                params, evaluated, inputs, step, rng, static, resources
            )
            weight = self.inner.part_weight(inputs, metrics).astype(jnp.float32)
            added = jax.tree.map(lambda total, x: total + weight * x, sums, (loss, grads))
            return added, (weight, metrics)

        rngs = jax.random.split(rng, self.parts)
        zeros = jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params)
        sums, (weights, metrics) = jax.lax.scan(add, zeros, (jax.tree.map(cut, inputs), rngs))
        total = jnp.sum(weights)
        total = jnp.where(total == 0, jnp.float32(1.0), total)
        loss, grads = jax.tree.map(lambda leaf: leaf / total, sums)
        means = {name: jnp.mean(values) for name, values in metrics.items()}
        if "caption_loss" in metrics:
            means["caption_loss"] = jnp.sum(weights * metrics["caption_loss"]) / total
        return loss, grads, means


def accumulated(objective: Objective, parts: int) -> Objective:
    """Return an objective whose batches are computed in `parts`."""
    if parts == 1:
        return objective
    inner = dataclasses.replace(objective, task=dataclasses.replace(objective.task, parts=parts))
    return Accumulated(task=objective.task, inner=inner, parts=parts)
