"""Second moments of gradients, found in the state of an optimizer."""

from typing import Any

import jax

from sparsecap_jax.pruning.paths import arrays_by_path, like, to_path
from sparsecap_jax.types import PyTree

# Fields of optax' states: moving averages of Adam and RMSProp, and the sums of Adagrad.
_FIELDS = ("nu", "sum_of_squares")


def second_moments(opt_state: PyTree, params: PyTree) -> PyTree:
    """Return an optimizer's second moments of the gradients, in the structure of `params`.

    Parameters without one are missing, as from masks. They are found by their names in optax'
    states, in chains and wrappers of any depth: of each parameter the first of its path and shape.

    Args:
        opt_state: state of the optimizer, such as `state.opt_state` of `sparse_step` or
            `state.inner` of `Pruner.wrap`.
        params: its parameters.
    """
    known = arrays_by_path(params)
    found: dict[tuple[str, ...], Any] = {}
    for keys, leaf in jax.tree.leaves_with_path(opt_state):
        path = to_path(keys)
        tails = [path[place + 1 :] for place, name in enumerate(path) if name in _FIELDS]
        owner = next((tail for tail in tails if tail in known), None)
        if owner is not None and known[owner].shape == getattr(leaf, "shape", None):
            found.setdefault(owner, leaf)
    return like(params, found)
