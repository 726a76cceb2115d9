"""Warm start: take another run's weights, and say exactly what does not fit."""

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
    found: PyTree, fresh: PyTree, ignore: Sequence[str], source: str
) -> tuple[PyTree, int]:
    """Put `found` into the structure of `fresh`.

    Args:
        found: params of another run.
        fresh: initial params; ignored leaves that do not fit keep theirs.
        ignore: regexes over `a/b/c` paths (full match) of leaves that need not fit.
        source: what error messages call the other run.

    Returns:
        The params, and how many leaves of `found` are in them.

    Raises:
        CheckpointError: a leaf that is not ignored is missing, extra or of another shape.
    """
    found = {"/".join(path): leaf for path, leaf in flatten_dict(found).items()}
    made = {"/".join(path): leaf for path, leaf in flatten_dict(fresh).items()}
    wanted = {name: leaf.shape for name, leaf in made.items()}
    fits = {name for name in wanted if name in found and found[name].shape == wanted[name]}
    faults = [
        _fault(name, wanted, found)
        for name in sorted({*wanted, *found} - fits)
        if not any(re.fullmatch(pattern, name) for pattern in ignore)
    ]
    if faults:
        raise CheckpointError(
            f"{source}: does not fit the model: {'; '.join(faults)} (config.train.init_ignore "
            "lists what may differ)"
        )
    merged = {n: jnp.asarray(found[n], jnp.float32) if n in fits else made[n] for n in wanted}
    return unflatten_dict({tuple(n.split("/")): leaf for n, leaf in merged.items()}), len(fits)


def _fault(name: str, wanted: dict, found: dict) -> str:
    if name not in found:
        return f"{name} is missing"
    if name not in wanted:
        return f"{name} is extra"
    return f"{name} has shape {found[name].shape}, expected {wanted[name]}"
