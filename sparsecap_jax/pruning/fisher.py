"""Pruning by the diagonal of the Fisher information, which Adam keeps anyway."""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning.moments import second_moments
from sparsecap_jax.pruning.paths import by_path, listed
from sparsecap_jax.pruning.ranked import Arrays, Ranked
from sparsecap_jax.pruning.states import PruneState
from sparsecap_jax.types import PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamFisher(Ranked):
    """The weights whose removal costs least by weight^2 x second moment are pruned in training.

    Removing weight w raises the loss by w^2 F / 2 to second order, F the diagonal of the empirical
    Fisher information, E[g^2]. Adam's moving average of squared gradients stands in for it; its
    correction of the start is one factor for all, and changes no rank.

    The moments are those that the optimizer has after the step of an event: `nu` of optax' Adam,
    AdamW, RMSProp and their kin, `sum_of_squares` of Adagrad, wherever they stand in a chain. They
    are of the gradients as the optimizer sees them, clipped ones, say. One without them, such as
    SGD or Adafactor, is refused. A pruned weight has no gradient and its moment decays, so that it
    seldom comes back.

    Attributes:
        when: `polynomial` (the cubic rise), `periodic` (the whole target at every event) or
            `one_shot` (at `start_step`); before training no optimizer has moments.

    References:
        Singh and Alistarh, "WoodFisher: efficient second-order approximation for neural network
        compression" (2020), arXiv 2004.14340, equation 6 with a diagonal matrix.
        Lee et al., "JaxPruner: a concise library for sparsity research" (2023), arXiv 2304.14082
        (its extension `adam-fisher`).

    Cost: a pass over weights and moments, and a ranking, at every event. Memory: that of the masks.
    """

    when: Literal["polynomial", "periodic", "one_shot"] = "polynomial"

    def evidence(self, grads: PyTree, opt_state: PyTree, params: PyTree) -> PyTree:
        """Return the optimizer's second moments.

        Raises:
            ConfigError: it keeps none.
        """
        found = second_moments(opt_state, params)
        if not by_path(found):
            raise ConfigError(
                f"pruner {self.name!r} ranks the second moments of an optimizer such as Adam or "
                "RMSProp (`nu` in optax), and this one keeps none"
            )
        return found

    def rank(
        self,
        state: PruneState,
        params: PyTree,
        grads: PyTree | None,
        event: Any = 0,
        schedule: Any = None,
    ) -> Arrays:
        """As in `Ranked`, `grads` being second moments.

        Raises:
            ConfigError: there are none, or none of a weight that is ranked.
        """
        if grads is None:
            raise ConfigError(
                f"pruner {self.name!r} ranks second moments; give it those of the optimizer, "
                "second_moments(opt_state, params), as grads"
            )
        missing = self.split(state.masks)[0].keys() - by_path(grads).keys()
        if missing:
            raise ConfigError(
                f"pruner {self.name!r}: the optimizer keeps no second moments of "
                f"{listed(sorted(missing))}"
            )
        return super().rank(state, params, grads, event, schedule)

    def scores(
        self, state: PruneState, weights: Arrays, grads: Arrays | None, event: Any
    ) -> Arrays:
        """Return weight^2 x second moment."""
        moments = grads or []  # `rank` has refused to go without them
        return [jnp.square(w) * moment for w, moment in zip(weights, moments, strict=True)]
