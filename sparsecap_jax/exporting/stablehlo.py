"""Graphs as StableHLO, serialised by `jax.export`; JAX runs them without our code."""

import contextlib
from collections.abc import Iterator

import jax
from jax import export

from sparsecap_jax.exporting.graphs import symbolic
from sparsecap_jax.exporting.specs import Graph

CALLING_CONVENTION = 10
"""Version of `jax.export`'s calling convention, whatever JAX would take by default."""

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def serialized(graph: Graph) -> bytes:
    """Return a graph as the bytes that `jax.export.deserialize` takes.

    The function in it is called with two dicts of arrays, weights and inputs, and returns a dict.
    """
    arguments = symbolic(graph.params), symbolic(graph.inputs)
    with _calling_convention():
        exported = export.export(jax.jit(graph.function), platforms=PLATFORMS)(*arguments)
        return bytes(exported.serialize())


@contextlib.contextmanager
def _calling_convention() -> Iterator[None]:
    before = jax.config.jax_export_calling_convention_version
    jax.config.update("jax_export_calling_convention_version", CALLING_CONVENTION)
    try:
        yield
    finally:
        jax.config.update("jax_export_calling_convention_version", before)
