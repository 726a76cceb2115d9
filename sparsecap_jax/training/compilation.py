"""Compile steps before they run, and give back the memory that compiling took."""

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import jax


def release_freed_memory() -> bool:
    """Give freed memory back to the system; return whether there was any.

    glibc keeps what the compiler freed, which after a large step is a gigabyte on top of what the
    step itself needs. Elsewhere nothing is done.
    """
    if sys.platform != "linux":
        return False
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return bool(trim and trim(0))


def compiled_ahead(jitted: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a jitted function: freed memory is given back before and after each compilation.

    Its static arguments are hashable and come by position.
    """
    known = set()

    def describe(leaf):
        return (leaf.shape, leaf.dtype) if hasattr(leaf, "shape") else leaf

    def call(*args):
        shapes = tuple(map(describe, jax.tree.leaves(args)))
        if shapes not in known:
            release_freed_memory()
            jitted.lower(*args).compile()  # the call below finds it in JAX's memory
            release_freed_memory()
            known.add(shapes)
        return jitted(*args)

    return call
