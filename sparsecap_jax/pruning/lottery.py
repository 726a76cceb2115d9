"""Lottery tickets: masks found on trained weights, training again from the initial ones.

References:
    Frankle and Carbin, "The lottery ticket hypothesis" (2019), arXiv 1803.03635.
"""

import dataclasses
from typing import ClassVar

from jaxtyping import Array

from sparsecap_jax.pruning.base import Pruner, PruneState, copy_tree
from sparsecap_jax.pruning.frozen import MaskFreeze
from sparsecap_jax.pruning.magnitude import OneShotMagnitude
from sparsecap_jax.types import PyTree


class Rewinds(Pruner):
    """Remembers the weights that `init` saw and hands them back after `prepare`."""

    rewinds: ClassVar[bool] = True

    def init(self, rng: Array, params: PyTree) -> PruneState:
        """Fresh masks, and a copy of the initial parameters, biases and norms included."""
        return super().init(rng, params).replace(extras={"initial": copy_tree(params)})

    def rewind(self, state: PruneState, params: PyTree) -> tuple[PruneState, PyTree]:
        """Return the initial parameters; the state lets go of them."""
        return state.replace(extras={}), state.extras["initial"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LotteryMagnitude(OneShotMagnitude, Rewinds):
    """One-shot magnitude masks of the trained weights, then a rewind of all parameters."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LotteryMaskFreeze(MaskFreeze, Rewinds):
    """The masks of an already pruned model, then a rewind of all parameters."""
