"""Nested dicts of arrays, without JAX."""

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested dicts by path, `a/b`."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        leaves |= flatten(value, f"{path}/") if isinstance(value, Mapping) else {path: value}
    return leaves


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested dicts from leaves by path; no path may lie within another."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = leaf
    return tree


def checksum(leaves: Mapping[str, Any], start: int = 0) -> int:
    """Return a CRC-32 of the leaves of nested dicts, in order of their paths, after `start`."""
    for _, leaf in sorted(flatten(leaves).items()):
        start = zlib.crc32(np.ascontiguousarray(leaf), start)
    return start
