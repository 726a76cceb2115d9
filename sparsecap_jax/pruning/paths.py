"""Paths of parameters, and patterns over paths that choose the prunable ones.

A path is the tuple of a leaf's keys from the root; messages and patterns see it as `a/b/kernel`.
Wherever an order matters (ties, random bits, reports) it is the sorted order of paths.
"""

import re
from collections.abc import Iterable
from typing import Any

import jax
from flax import traverse_util
from jax.tree_util import GetAttrKey

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.types import PyTree

Path = tuple[str, ...]

# Matrices of Dense, Conv, Embed, LSTM and attention in Flax, Haiku and plain-dict models.
WEIGHT_NAMES = re.compile(r"(kernel|weight)(_.*)?|embeddings?|w")
# Attention biases and stacked norm scales may have two dimensions, but are never pruned.
NEVER_NAMES = re.compile(r"(bias|scale)(_.*)?|b|beta|gamma")


def to_path(keys: Iterable[Any]) -> Path:
    """Return the path of a leaf from JAX's key path, without the `.value` of an nnx variable."""
    keys = tuple(keys)
    if len(keys) > 1 and isinstance(keys[-1], GetAttrKey) and keys[-1].name == "value":
        keys = keys[:-1]
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in keys)


def show(path: Path) -> str:
    """Join a path as patterns and messages see it: `a/b/kernel`."""
    return "/".join(path)


def by_path(tree: PyTree) -> dict[Path, Any]:
    """Return the leaves of any pytree by path, in sorted order of paths."""
    flat = {to_path(keys): leaf for keys, leaf in jax.tree.leaves_with_path(tree)}
    return {path: flat[path] for path in sorted(flat)}


def nest(flat: dict[Path, Any]) -> dict:
    """Return the nested dict with the given leaves, the form of all masks."""
    return traverse_util.unflatten_dict(flat)


def listed(paths: Iterable[Path]) -> str:
    """Name the first few paths, for messages."""
    names = [show(path) for path in paths]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def matching(patterns: tuple[str, ...], paths: Iterable[Path], where: str) -> set[Path]:
    """Return the paths that at least one pattern (a regular expression) matches in full.

    `where` names the patterns' field in messages.

    Raises:
        ConfigError: a pattern is no regular expression, or matches none of the paths.
    """
    paths = list(paths)
    matched = set()
    for pattern in patterns:
        try:
            regex = re.compile(pattern)
        except re.error as error:
            message = f"{where}: {pattern!r} is not a regular expression: {error}"
            raise ConfigError(message) from None
        hits = {path for path in paths if regex.fullmatch(show(path))}
        if not hits:
            message = f"{where}: {pattern!r} matches none of the paths in full: {listed(paths)}"
            raise ConfigError(message)
        matched |= hits
    return matched


def select(
    params: PyTree, include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()
) -> list[Path]:
    """Return the paths of the prunable leaves, sorted.

    A leaf qualifies when it has two dimensions or more, is no bias or scale, and either bears a
    usual name of a weight matrix or, where `include` is given, matches one of its patterns. Leaves
    that `exclude` matches are left out.

    Raises:
        ConfigError: a pattern matches nothing, or no leaf is prunable.
    """
    leaves = by_path(params)
    names = {path: path[-1] if path else "" for path, leaf in leaves.items() if leaf.ndim >= 2}
    paths = [path for path, name in names.items() if not NEVER_NAMES.fullmatch(name)]
    if include:
        chosen = matching(include, paths, "pruner.include")
    else:
        chosen = {path for path in paths if WEIGHT_NAMES.fullmatch(names[path])}
    if exclude:
        chosen -= matching(exclude, sorted(chosen), "pruner.exclude")
    if not chosen:
        raise ConfigError(f"pruner: none of the parameters can be pruned ({listed(leaves)})")
    return sorted(chosen)
