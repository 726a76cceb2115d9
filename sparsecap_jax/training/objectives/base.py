"""Objectives: the losses that captioners are trained on, behind one protocol."""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning.step import Metrics
from sparsecap_jax.tokenizers import Tokenizer
from sparsecap_jax.training.config import ScheduledSampling
from sparsecap_jax.types import Batch, PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """The parts of a run that objectives may use.

    Attributes:
        model: the captioner.
        tokenizer: its tokenizer.
        references: training captions of each image, in the order of `Batch.index`.
        max_length: most tokens of a caption that is decoded.
        shards: devices that a batch is split over, those of all processes.
        processes: processes that a batch is split over.
        largest: returns the largest of the numbers that the processes call it with; static sizes
            must be the same in all.
        steps_per_epoch: length of an epoch in steps.
        label_smoothing: `config.train.label_smoothing`.
        sampling: scheduled sampling.
        parts: batches that `Objective.inputs` gets for each step, see `Accumulated`.
    """

    model: nn.Module
    tokenizer: Tokenizer | None = None
    references: Sequence[Sequence[str]] = ()
    max_length: int = 18
    shards: int = 1
    processes: int = 1
    largest: Callable[[int], int] = int
    steps_per_epoch: int = 1
    label_smoothing: float = 0.0
    sampling: ScheduledSampling = dataclasses.field(default_factory=ScheduledSampling)
    parts: int = 1

    @property
    def local_shards(self) -> int:
        """Devices that this process' part of a batch is split over."""
        return self.shards // self.processes


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Objective:
    """A loss of one batch, and the inputs it needs.

    Fields of a subclass other than `task` are its settings, set in the config section `objective`.
    Most subclasses override `loss` alone; one that computes its own gradients overrides
    `__call__`.

    Attributes:
        task: the parts of the run.
        needs_trained: reason why training with it starts from a trained model, "" if it need not.
        resources: arrays that stay on the devices, such as the weights of a teacher.
    """

    task: Task

    needs_trained: ClassVar[str] = ""

    def __post_init__(self):
        if type(self).loss is Objective.loss and type(self).__call__ is Objective.__call__:
            raise ConfigError(f"objective {type(self).__name__} defines neither loss nor __call__")

    @property
    def resources(self) -> PyTree:
        """Arrays that stay on the devices for the whole run; passed to `loss` and `__call__`."""
        return ()

    def inputs(self, batches: Batch, step: int) -> tuple[PyTree, Hashable]:
        """Return the arguments of a call of the compiled step, made on the host.

        Args:
            batches: leaves `[N, B, ...]`, the batches of N steps; of several processes each has its
                own images of them.
            step: number of steps taken before them.

        Returns:
            Arrays `[N, B, ...]`, and static sizes, which must be equal in all processes: each value
            compiles a step of its own.
        """
        return batches, None

    def loss(
        self, params: PyTree, inputs: Any, step: Array, rng: Array, static: Any, resources: PyTree
    ) -> tuple[Array, Metrics]:
        """Return the loss of one batch, float32 `[]`, and scalars to log.

        `caption_loss` among them is shown as progress.

        Args:
            params: weights, masks applied.
            inputs: arrays `[B, ...]` that `inputs` returned, for one step.
            step: int32 `[]`, number of steps taken before this one.
            rng: a PRNG key.
            static: the sizes that `inputs` returned; None before training (SNIP).
            resources: `self.resources`.
        """
        raise TypeError(f"{type(self).__name__} has no loss of its own")

    def part_weight(self, inputs: Any, metrics: Metrics) -> Array:
        """Return the weight of a part in the mean loss of a batch that is computed in parts.

        By default the number of its words, for losses that are means over words; where `inputs` are
        no batch, 1, for means over images, of which each part has as many.

        Args:
            inputs: arrays of the part.
            metrics: what `loss` or `__call__` returned for it.
        """
        if isinstance(inputs, Batch):
            return jnp.sum(inputs.token_mask[..., 1:], dtype=jnp.float32)
        return jnp.ones((), jnp.float32)

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
        """Return loss, gradients with respect to `params`, and metrics; traced.

        The arguments are those of `loss`, and `evaluated`, the weights of evaluation mode (None
        where they equal `params`).
        """
        value_and_grad = jax.value_and_grad(self.loss, has_aux=True)
        (loss, metrics), grads = value_and_grad(params, inputs, step, rng, static, resources)
        return loss, grads, metrics
