"""Paths of parameters, and patterns over paths that choose the prunable ones.

A path is the tuple of a leaf's keys from the root; messages and patterns see it as `a/b/kernel`.
Wherever an order matters (ties, random bits, reports) it is the sorted order of paths.

Parameters are any pytree, and NNX modules, which are read through their state: a variable that
several layers share occurs once there.
"""

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from flax.core import FrozenDict

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.types import PyTree

Path = tuple[str, ...]

# Matrices of Dense, Conv, Embed, recurrent cells and attention in Flax, Equinox, Haiku and dicts.
WEIGHT_NAMES = re.compile(r"(kernel|weight|w)(_.*)?|embeddings?")
# Attention biases and stacked norm scales may have two dimensions, but are never pruned.
NEVER_NAMES = re.compile(r"(bias|scale)(_.*)?|b|beta|gamma")
_BOXED = jax.tree_util.GetAttrKey("value")


def to_path(keys: Iterable[Any]) -> Path:
    """Return the path of a leaf from JAX's key path, without the `value` of a box at its end.

    Such boxes are variables of NNX and partitioned parameters of Linen, which have it as an
    attribute; an entry `value` of a dict is a name like any other.
    """
    keys = tuple(keys)
    if len(keys) > 1 and keys[-1] == _BOXED:
        keys = keys[:-1]
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in keys)


def show(path: Path) -> str:
    """Join a path as patterns and messages see it: `a/b/kernel`."""
    return "/".join(path)


def by_path(tree: PyTree) -> dict[Path, Any]:
    """Return the leaves of any pytree or NNX module by path, in sorted order of paths."""
    flat = {to_path(keys): leaf for keys, leaf in jax.tree.leaves_with_path(_opened(tree))}
    return {path: flat[path] for path in sorted(flat)}


def arrays_by_path(tree: PyTree) -> dict[Path, Any]:
    """Return `by_path` without the leaves that are no arrays, such as functions in a module."""
    return {path: leaf for path, leaf in by_path(tree).items() if hasattr(leaf, "shape")}


def map_paths(function: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
    """Map `function(path, leaf, *leaves of the rest)`; an NNX module gives a new one."""
    if is_nnx_module(tree):
        nnx = sys.modules["flax.nnx"]
        graph, state = nnx.split(tree)
        return nnx.merge(graph, map_paths(function, state, *map(_opened, rest)))

    def visit(keys, *leaves):
        return function(to_path(keys), *leaves)

    return jax.tree_util.tree_map_with_path(visit, tree, *rest)


def replaced(tree: PyTree, flat: Mapping[Path, Any]) -> PyTree:
    """Return `tree` with the leaves of `flat`, which has all of its paths."""
    return map_paths(lambda path, leaf: flat[path], tree)


def like(tree: PyTree, flat: Mapping[Path, Any]) -> PyTree:
    """Return the leaves of `flat` in the structure of `tree`, which has more: the form of masks.

    Dicts, FrozenDicts and states of NNX have no other entries; lists, tuples and other nodes keep
    their places, and hold None there. An NNX module gives a state.
    """
    return _thinned(map_paths(lambda path, leaf: flat.get(path), _opened(tree)))


def _thinned(node: Any) -> Any:
    """Drop what has no leaves from mappings that are reached through mappings."""
    nnx = sys.modules.get("flax.nnx")
    if type(node) not in (dict, FrozenDict) and not (nnx and isinstance(node, nnx.State)):
        return node
    items = getattr(node, "raw_mapping", node).items()  # a state's own parts are plain dicts
    entries = {key: _thinned(value) for key, value in items}
    return type(node)({key: value for key, value in entries.items() if jax.tree.leaves(value)})


def is_nnx_module(tree: PyTree) -> bool:
    """Return whether this is a module of NNX, which nobody has unless it is imported."""
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(tree, nnx.Module)


def _opened(tree: PyTree) -> PyTree:
    return sys.modules["flax.nnx"].state(tree) if is_nnx_module(tree) else tree


def nest(flat: dict[Path, Any]) -> dict:
    """Return the nested dict with the given leaves."""
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

    A leaf qualifies when it is of real floats with two dimensions or more, is no bias or scale, and
    either bears a usual name of a weight matrix or, where `include` is given, matches one of its
    patterns. The name is the last part of the path that is no number; leaves without any name, as
    in lists of pairs, have a usual one. Leaves that `exclude` matches are left out.

    Raises:
        ConfigError: a pattern matches nothing, or no leaf is prunable.
    """
    leaves = arrays_by_path(params)
    names = {path: last_name(path) for path, leaf in leaves.items() if _is_matrix(leaf)}
    paths = [path for path, name in names.items() if not NEVER_NAMES.fullmatch(name)]
    if include:
        chosen = matching(include, paths, "pruner.include")
    else:
        chosen = {path for path in paths if WEIGHT_NAMES.fullmatch(names[path] or "w")}
    if exclude:
        chosen -= matching(exclude, sorted(chosen), "pruner.exclude")
    if not chosen:
        raise ConfigError(f"pruner: none of the parameters can be pruned ({listed(leaves)})")
    return sorted(chosen)


def is_float(leaf: Any) -> bool:
    """Return whether an array is of real floating-point numbers: no keys, counters, or complex."""
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def last_name(path: Path) -> str:
    """Return the last part of a path that is no number; empty where all are."""
    return next((part for part in reversed(path) if not part.isdigit()), "")


def _is_matrix(leaf: Any) -> bool:
    return len(leaf.shape) >= 2 and is_float(leaf)
