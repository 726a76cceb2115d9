"""Steps compile once for each shape, and freed memory goes back to the system."""

import ctypes
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from sharded_cases import cross_entropy, make_parts, take_steps

from sparsecap_jax.training import steps
from sparsecap_jax.training.sharding import Placement, make_mesh
from sparsecap_jax.training.steps import compiled_ahead, release_freed_memory

needs_glibc = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"),
    reason="only glibc keeps freed memory and gives it back on request",
)


def test_each_shape_is_compiled_once():
    events = []

    def listen(event, seconds, **unused):
        if event.endswith("backend_compile_duration"):
            events.append(event)

    given = [jnp.arange(size, dtype=jnp.float32) for size in (3, 3, 5, 3, 5)]
    replicated = NamedSharding(make_mesh(1, 1), PartitionSpec())
    jitted = jax.jit(
        lambda state, x: (state + jnp.sum(x), 2 * x),
        in_shardings=(replicated, replicated),
        out_shardings=replicated,
        donate_argnums=0,
    )
    step = compiled_ahead(jitted)
    state, given = jax.device_put((jnp.zeros((), jnp.float32), given), replicated)
    jax.block_until_ready((given, state))
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for x in given:
            state, doubled = step(state, x)
            np.testing.assert_array_equal(doubled, 2 * np.arange(x.size))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert state == 3 + 3 + 10 + 3 + 10
    assert len(events) == 2


def test_the_ordinary_step_gives_back_what_compiling_took(monkeypatch):
    """Before and after its one compilation, and not again."""
    calls = []
    monkeypatch.setattr(steps, "release_freed_memory", lambda: calls.append(None))
    model, pruner, tx, state = make_parts("up_down", "none")
    take_steps(cross_entropy(model), pruner, tx, state, Placement(make_mesh(1, 8)), steps=2)
    assert len(calls) == 2


def resident_bytes():
    pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * 4096


@needs_glibc
def test_freed_memory_goes_back():
    blocks = [bytes(1000) for _ in range(200_000)]
    last = blocks[-1]  # the heap cannot shrink from its end
    del blocks
    before = resident_bytes()
    assert release_freed_memory()
    assert resident_bytes() < before - 100_000_000
    assert not any(last)
