"""Products in every form, and which form a matrix takes."""

import os
import subprocess
import sys

import numpy as np
import pytest

from sparsecap_jax.sparse import matrices
from sparsecap_jax.sparse.matrices import Product, WordProduct


def drawn(kind, shape=(64, 80)):
    """A kernel whose weights are kept at random, in 4 x 4 blocks, or two of four inputs."""
    rng = np.random.default_rng(0)
    if kind == "blocks":
        mask = (rng.random([size // 4 for size in shape]) < 0.05).repeat(4, 0).repeat(4, 1)
    elif kind == "2:4":
        order = rng.random((shape[0] // 4, 4, shape[1])).argsort(axis=1)
        mask = (order < 2).reshape(shape)
    else:
        mask = rng.random(shape) < kind
    return (rng.standard_normal(shape) * mask).astype(np.float32)


@pytest.mark.parametrize(
    ("form", "compiled"), [("dense", True), ("csr", True), ("csr", False), ("blocks", True)]
)
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("kind", [0.0, 0.05, 0.5, "blocks", "2:4"])
def test_products_are_those_of_the_dense_matrix(monkeypatch, kind, threads, form, compiled):
    monkeypatch.setattr(matrices, "_WORTH_THREADS_NS", 0)
    kernel = drawn(kind)
    product, rng = Product(kernel, form, threads, not compiled), np.random.default_rng(1)
    np.testing.assert_array_equal(product.kernel(), kernel)
    for shape in [(), (0,), (1,), (2,), (3, 2), (9, 1), (2, 30)]:
        inputs = rng.standard_normal((*shape, 64)).astype(np.float32)
        inputs.setflags(write=False)  # as arrays of JAX are
        found = product(inputs)
        assert found.dtype == np.float32 and found.shape == (*shape, 80)
        np.testing.assert_allclose(found, inputs @ kernel, atol=1e-5)
        start = rng.standard_normal(80).astype(np.float32)
        np.testing.assert_allclose(product(inputs, start), inputs @ kernel + start, atol=1e-5)


def test_small_products_are_compiled_once_scipy_has_had_its_time(monkeypatch):
    kernel, used = drawn(0.05), []
    product = Product(kernel, "csr", small=True)
    for name in ("_by_library", "_multiply"):
        method = getattr(Product, name)
        monkeypatch.setattr(Product, name, _counted(method, used))
    monkeypatch.setattr(matrices, "_scipy_left", 3.5 * 20 * 0.6 * int(np.count_nonzero(kernel)))
    inputs = np.random.default_rng(1).standard_normal((20, 64)).astype(np.float32)
    for _ in range(5):
        np.testing.assert_allclose(product(inputs), inputs @ kernel, atol=1e-5)
    assert used == ["_by_library"] * 3 + ["_multiply"] * 2


def _counted(method, used):
    def call(*args):
        used.append(method.__name__)
        return method(*args)

    return call


def test_words_take_the_rows_of_their_entries():
    embedding, kernel = drawn(0.1, (30, 64)), drawn(0.2)
    product, results = WordProduct(embedding, kernel), np.ones((2, 3, 80), np.float32)
    tokens = np.array([[0, 29, 7], [7, 7, 1]])
    tokens.setflags(write=False)
    product.add(tokens, results)
    np.testing.assert_allclose(results, 1 + embedding[tokens] @ kernel, atol=1e-5)
    np.testing.assert_array_equal(product.kernel(), kernel)
    taken = [sum(np.count_nonzero(kernel[at]) for at in np.flatnonzero(row)) for row in embedding]
    assert product.stored == pytest.approx(np.mean(taken))
    assert product.cost(8) == pytest.approx(8 * 0.5 * np.mean(taken))
    for token in (-1, 30):
        with pytest.raises(IndexError, match=rf"tokens \[{token}\]: expected less than 30"):
            product.add(np.array([token]), results[:1, :1])


def test_wide_matrices_have_wide_places():
    kernel = np.zeros((70_000, 3), np.float32)
    kernel[[0, 65_536, 69_999], [0, 1, 2]] = 1, 2, 3
    product, inputs = Product(kernel, "csr"), np.arange(70_000, dtype=np.float32)
    assert product(inputs).tolist() == [0, 2 * 65_536, 3 * 69_999]
    np.testing.assert_array_equal(product.kernel(), kernel)


@pytest.mark.parametrize(
    ("kind", "form", "stored"),
    [(0.9, "dense", 5120), ("2:4", "dense", 5120), (0.05, "csr", None), ("blocks", "blocks", None)],
)
def test_a_matrix_takes_the_form_that_costs_least(kind, form, stored):
    kernel = drawn(kind)
    product = Product(kernel)
    assert product.form == form
    assert product.stored == (stored or np.count_nonzero(kernel))
    each = {"dense": 0.15, "csr": 0.32, "blocks": 0.16}[form]
    assert product.cost(1) == pytest.approx(each * product.stored)


@pytest.mark.parametrize("shape", [(10, 8), (8, 11), (13, 22)])
@pytest.mark.parametrize("threads", [1, 2])
def test_blocks_that_do_not_divide_a_matrix(monkeypatch, threads, shape):
    monkeypatch.setattr(matrices, "_WORTH_THREADS_NS", 0)
    kernel = np.zeros(shape, np.float32)
    kernel[-1, :] = kernel[:4, -1] = 2.0  # within the last row and the last column of blocks
    product = Product(kernel, "blocks", threads)
    assert product.form == "blocks"
    tall, wide = (-(-size // 4) for size in shape)
    assert product.stored == 16 * (wide + (1 if tall > 1 else 0))
    np.testing.assert_array_equal(product.kernel(), kernel)
    for rows in (1, 3, 40):
        inputs = np.random.default_rng(1).standard_normal((rows, shape[0])).astype(np.float32)
        np.testing.assert_allclose(product(inputs), inputs @ kernel, atol=1e-5)


def test_many_rows_cost_less_than_each_alone():
    product = Product(drawn(0.05))
    assert product.cost(1) == pytest.approx(0.32 * product.stored)
    assert product.cost(2) == product.cost(8) == pytest.approx(0.43 * product.stored)
    assert product.cost(9) == product.cost(16) == pytest.approx(0.86 * product.stored)
    assert product.cost(100) == pytest.approx(13 * 0.43 * product.stored)


def test_kernels_work_where_nothing_can_be_kept(monkeypatch):
    """A read-only installation of a user without a cache folder."""
    from numba.core import caching

    from sparsecap_jax.sparse.kernels import compile_kernel

    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    starts, outputs = np.array([0, 1, 3], np.uint32), np.array([1, 0], np.uint32)
    inputs = np.array([2, 0, 1], np.uint16)
    weights, result = np.array([5, 7, 11], np.float32), np.ones(2, np.float32)
    vector = np.array([1, 10, 100], np.float32)
    compile_kernel("csr")(starts, outputs, inputs, weights, vector, result, 0, 2)
    assert result.tolist() == [118, 501]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_of_a_process_with_threads_multiplies_on():
    code = """
import os, signal
import numpy as np
from sparsecap_jax.sparse import matrices
matrices._WORTH_THREADS_NS = 0
product, ones = matrices.Product(np.eye(8, dtype=np.float32), "csr", 2), np.ones((1, 8), np.float32)
product(ones)
child = os.fork()
if not child:
    signal.alarm(20)
    os._exit(0 if (product(ones) == 1).all() else 3)
assert os.waitpid(child, 0)[1] == 0
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
