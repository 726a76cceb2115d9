"""Distillation: a sparse student follows the words of a dense teacher as well as the captions.

sparsecap train --config=configs/toy.py:supermask --workdir=runs/student \
    --config.objective.name=distillation:Distillation \
    --config.objective.teacher=runs/demo/dense --config.objective.weight=0.5

with this file's folder in PYTHONPATH.

Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network" (2015), arXiv 1503.02531.
"""

import dataclasses
import functools
from typing import Annotated

import jax
import jax.numpy as jnp

import sparsecap_jax as sc
from sparsecap_jax.settings import Range
from sparsecap_jax.training.losses import caption_loss


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Distillation(sc.Objective):
    """Cross-entropy, and the divergence of the student's words from the teacher's.

    Attributes:
        teacher: run directory of the teacher, which has the same tokenizer.
        weight: share of the divergence.
    """

    teacher: str = ""
    weight: Annotated[float, Range(0, 1)] = 0.5

    @functools.cached_property
    def run(self):
        return sc.load_run(self.teacher)

    @property
    def resources(self):
        return self.run.params

    def loss(self, params, inputs, step, rng, static, resources):
        batch, student = inputs, self.task.model
        arguments = batch.regions, batch.tokens
        words = student.apply({"params": params}, *arguments, train=True, rngs={"dropout": rng})
        taught = self.run.model.apply({"params": resources}, *arguments)
        counted = batch.token_mask[..., 1:]
        gaps = jnp.sum(jnp.exp(taught) * (taught - words), axis=-1)[..., : counted.shape[-1]]
        divergence = jnp.sum(gaps * counted) / jnp.maximum(jnp.sum(counted), 1)
        loss = caption_loss(words, batch)
        metrics = {"caption_loss": loss, "divergence": jax.lax.stop_gradient(divergence)}
        return (1 - self.weight) * loss + self.weight * divergence, metrics
