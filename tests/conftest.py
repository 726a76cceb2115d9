"""Shared fixtures: where the reference figures lie, and a compilation cache for the whole suite."""

import collections
import gc
import importlib.metadata
import os
import pathlib
import signal

# Eight fake devices for every test; before JAX starts. The former emitters compile fused operations
# three times as fast; jaxlib 0.12 stops on their flag. Splitting a program for several cores costs
# time where the other workers keep these busy.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_cpu_parallel_codegen_split_count=1"
    + " --xla_cpu_use_fusion_emitters=false"
    * importlib.metadata.version("jaxlib").startswith(("0.10.", "0.11.")),
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent.parent / ".jax_cache")
)
# Small programs too: a training of a test compiles 140, and the next process wants the same ones.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Most of the suite's time is compilation, which this halves; `make demo` runs the optimised code.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import numpy as np
import pytest
from jax._src import compiler

# Background jobs of a shell ignore SIGINT, and so would the programs that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPO = pathlib.Path(__file__).parent.parent


def pytest_addoption(parser):
    """A checkout of the PyTorch reference and a Python that has torch, for tests that run it."""
    parser.addoption("--reference", help="checkout of the PyTorch reference")
    parser.addoption("--reference_python", help="interpreter with torch and sentencepiece")


def shared_dir() -> pathlib.Path:
    """The folder of reference figures and real data: $SPARSECAP_SHARED, or ../shared."""
    return pathlib.Path(os.environ.get("SPARSECAP_SHARED", REPO.parent / "shared"))


# Files that take half a minute or more, the longest first; last in the line, one of them would keep
# a worker busy alone.
LONG = (
    "test_step.py",
    "test_colabs.py",
    "test_processes.py",
    "test_loop.py",
    "test_loop_results.py",
    "test_continue.py",
    "test_fuzz.py",
    "test_packed_run.py",
    "test_docs.py",
    "test_export.py",
    "test_papers.py",
    "test_flickr8k_scst.py",
    "test_flickr8k_pruners.py",
    "test_scst_run.py",
    "test_sweeps.py",
    "test_grids.py",
)


def pytest_collection_modifyitems(items):
    """Begin with the long files, then those of many tests; workers take files in this order."""
    tests = collections.Counter(item.path for item in items)
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: (places.get(item.path.name, len(LONG)), -tests[item.path]))


def pytest_collection_finish():
    """Leave what was imported out of garbage collection, and collect the rest rarely.

    Each of the two took 7% of the suite's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def pytest_sessionfinish():
    """Return them, since what is imported at the end may look for its referrers."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """Path of the shared folder; skips where it is absent, fails where CI requires it."""
    path = shared_dir()
    if not (path / "reference").is_dir():
        message = f"reference figures not found at {path} (set SPARSECAP_SHARED)"
        if os.environ.get("SPARSECAP_REQUIRE_SHARED"):
            pytest.fail(message)
        pytest.skip(message)
    return path


@pytest.fixture(scope="session")
def golden(shared):
    """Loader of reference arrays: `golden("arch/up_down_lstm.npz")` -> dict of arrays."""
    cache = {}

    def load(name):
        if name not in cache:
            with np.load(shared / "reference" / name) as file:
                cache[name] = {key: file[key] for key in file.files}
        return cache[name]

    return load


@pytest.fixture
def default_emitters(monkeypatch):
    """Compile as users do, for results whose last bits depend on how operations are fused."""
    if "xla_cpu_use_fusion_emitters" not in os.environ["XLA_FLAGS"]:
        yield  # jaxlib 0.12 has no others
        return
    options_of = compiler.get_compile_options

    def options(*args, env_options_overrides=None, **more):
        overrides = {**(env_options_overrides or {}), "xla_cpu_use_fusion_emitters": "True"}
        return options_of(*args, env_options_overrides=overrides, **more)

    monkeypatch.setattr(compiler, "get_compile_options", options)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.fixture
def optimized():
    """Compile with XLA's optimisations, for a test that computes longer than it compiles."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, False)
    yield
    jax.config.update(name, before)


@pytest.fixture(autouse=True, scope="module")
def _bounded_maps():
    """Forget compiled programs before the process runs out of memory maps (Linux: 65,530)."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_text().count("\n") > 30_000:
        jax.clear_caches()
        gc.collect()
