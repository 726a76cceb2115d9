"""Names and sizes that a model file may have, checked when it is written and when it is read."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from sparsecap_jax.model_files.values import FORMS

MAX_FILES = 2**24
"""Bytes of all small files of a model file together."""

_MAX_PATH = 1000  # characters of the path of a leaf


def check_written(
    params: Mapping[str, Any], masks: Mapping[str, Any], form: str, files: Mapping[str, bytes]
) -> None:
    """Raise a ValueError about what a reader would refuse."""
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; expected one of {', '.join(FORMS)}")
    check_paths(params)
    for name, mask in masks.items():
        if name not in params or np.shape(mask) != np.shape(params[name]):
            found = f"{name}: a mask of shape {list(np.shape(mask))}"
            raise ValueError(f"{found}; expected the path and the shape of a weight")
    for name in files:
        check_name(name)
    size = sum(map(len, files.values()))
    if size > MAX_FILES:
        raise ValueError(f"files of {size} bytes; expected at most {MAX_FILES}")


def check_paths(names: Iterable[str]) -> None:
    """Raise a ValueError unless all paths are plain and short, each once, none within another."""
    names, seen = list(names), set()
    for name in names:
        if name in seen or not name.isprintable() or len(name) > _MAX_PATH:
            raise ValueError(f"{name!r:.200}: expected plain names, each once")
        seen.add(name)
    for name in names:
        parts = name.split("/")
        if "" in parts or any("/".join(parts[:n]) in seen for n in range(1, len(parts))):
            raise ValueError(f"{name}: expected a path that lies within no other")


def cut_short(size: int, expected: int) -> str:
    """Return the fault of a file that ends too early; sizes in bytes."""
    return f"the file is cut short: it has {size} bytes, expected at least {expected}"


def check_name(name: Any) -> None:
    """Raise a ValueError unless a name is a relative path of plain parts."""
    parts = name.split("/")
    plain = name.isprintable() and len(name) < 200 and not set(name) & set('\\:*?"<>|')
    if not plain or any(part.strip(" .") != part or not part for part in parts):
        raise ValueError(f"{name!r:.200}: expected a relative path")
