"""Warm start from another run's weights, naming whatever does not fit."""

import pathlib
import re
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.runs.directory import load_variables
from sparsecap_jax.runs.run import Run
from sparsecap_jax.types import PyTree


def warm_start(run: Run, fresh: PyTree, report: Callable[[str], None]) -> PyTree:
    """Initial params from the run directory `config.train.init_from`; ignored leaves from `fresh`.

    Raises:
        CheckpointError: leaves are missing there, extra or of another shape, and no regex of
            `config.train.init_ignore` covers them.
    """
    source = pathlib.Path(run.config.train.init_from)
    params, taken = merge_params(
        load_variables(source)["params"],
        fresh,
        run.config.train.init_ignore,
        str(source),
    )
    report(f"warm start: {taken} tensors from {source}")
    return params


def merge_params(
    source_params: PyTree, fresh: PyTree, ignore: Sequence[str], source: str
) -> tuple[PyTree, int]:
    """Put the params of another run into the structure of `fresh`.

    Args:
        source_params: params of another run.
        fresh: initial params; ignored leaves that do not fit keep theirs.
        ignore: regexes over `a/b/c` paths (full match) of leaves that need not fit.
        source: what error messages call the other run.

    Returns:
        The params, and the number of leaves taken from the other run.

    Raises:
        CheckpointError: a leaf that is not ignored is missing, extra or of another shape.
    """
    taken = {"/".join(path): leaf for path, leaf in flatten_dict(source_params).items()}
    initial = {"/".join(path): leaf for path, leaf in flatten_dict(fresh).items()}
    shapes = {name: leaf.shape for name, leaf in initial.items()}
    fits = {name for name in shapes if name in taken and taken[name].shape == shapes[name]}
    faults = [
        _fault(name, shapes, taken)
        for name in sorted({*shapes, *taken} - fits)
        if not any(re.fullmatch(pattern, name) for pattern in ignore)
    ]
    if faults:
        raise CheckpointError(
            f"{source}: does not fit the model: {'; '.join(faults)} (config.train.init_ignore "
            "lists what may differ)"
        )
    merged = {n: jnp.asarray(taken[n], jnp.float32) if n in fits else initial[n] for n in shapes}
    return unflatten_dict({tuple(n.split("/")): leaf for n, leaf in merged.items()}), len(fits)


def _fault(name: str, shapes: dict, taken: dict) -> str:
    if name not in taken:
        return f"{name} is missing"
    if name not in shapes:
        return f"{name} is extra"
    return f"{name} has shape {taken[name].shape}, expected {shapes[name]}"
