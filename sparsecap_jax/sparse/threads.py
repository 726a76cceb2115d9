"""Threads of the sparse runtime: a pool for parts of a product or of a batch, and none of BLAS.

After a product OpenBLAS's threads look for the next one for some 26 ms before they sleep, and keep
cores from the pool meanwhile. A search makes small products all the time, so they never sleep.
"""

import contextlib
import contextvars
import ctypes
import functools
import importlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sparsecap_jax.machine import cores

# Names of OpenBLAS's functions in builds of NumPy; "get" or "set" is filled in.
_OPENBLAS = (
    "scipy_openblas_{}_num_threads64_",
    "scipy_openblas_{}_num_threads",
    "openblas_{}_num_threads64_",
    "openblas_{}_num_threads",
)
_pool: ThreadPoolExecutor
_lock: threading.Lock
_searches: int  # that run
_before: int  # BLAS's number of threads before the first of them
_inside = contextvars.ContextVar("inside", default=False)  # a part of something larger


def _renew() -> None:
    global _pool, _lock, _searches
    _pool, _lock, _searches = ThreadPoolExecutor(cores(), "sparse"), threading.Lock(), 0


_renew()
if hasattr(os, "register_at_fork"):  # a fork has the pool but none of its threads
    os.register_at_fork(after_in_child=_renew)


def run_parts(parts: Sequence[Callable[[], Any]]) -> list[Any]:
    """Return the results of functions, each of which runs on a thread of its own.

    The first runs on the caller's. Parts of a part run one after the other.
    """
    if len(parts) == 1 or _inside.get():
        return [part() for part in parts]
    token = _inside.set(True)
    try:
        others = [_pool.submit(contextvars.copy_context().run, part) for part in parts[1:]]
        return [parts[0](), *(other.result() for other in others)]
    finally:
        _inside.reset(token)


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let NumPy's OpenBLAS run on the thread that calls it, in the whole process.

    The number of its threads is restored when the last of several concurrent blocks ends. With
    another BLAS nothing happens.
    """
    global _searches, _before
    functions = _openblas()
    if functions is None:
        yield
        return
    get, set_ = functions
    with _lock:
        if not _searches:
            _before = get()
            set_(1)
        _searches += 1
    try:
        yield
    finally:
        with _lock:
            _searches -= 1
            if not _searches:
                set_(_before)


@functools.cache
def _openblas() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """Return the functions that get and set the number of threads, None without OpenBLAS."""
    try:
        path = importlib.import_module("numpy._core._multiarray_umath").__file__
        library = ctypes.CDLL(path)  # loaded already; names are looked for in what it is linked to
    except (ImportError, OSError):
        return None
    for name in _OPENBLAS:
        with contextlib.suppress(AttributeError):
            return getattr(library, name.format("get")), getattr(library, name.format("set"))
    return None
