"""Products with pruned matrices, each in the form that is fastest for it.

A dense product streams every weight from memory; a sparse one touches the kept weights alone, at
about twice the cost of a dense one each.
"""

import functools
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float
from scipy import sparse

from sparsecap_jax.machine import cores
from sparsecap_jax.sparse.forms import BLOCK, LANES, cost

# Products that take less than this are not worth a second thread.
_WORTH_THREADS_NS = 400_000


def _renew_pool() -> None:
    global _pool
    _pool = ThreadPoolExecutor(cores(), "sparse")


_renew_pool()
if hasattr(os, "register_at_fork"):  # a fork has the pool but none of its threads
    os.register_at_fork(after_in_child=_renew_pool)


@functools.cache
def _kernel(form: str, many: bool) -> Callable[..., None]:
    """Return a compiled kernel; importing Numba takes a quarter of a second."""
    from sparsecap_jax.sparse.kernels import compile_kernel

    return compile_kernel(form, many)


class Product:
    """The function from `inputs [..., I]` to `inputs @ kernel [..., O]`.

    Args:
        kernel: float32 weights.
        form: "dense", "csr" (compressed rows of outputs) or "blocks" (rows of `BLOCK` x `BLOCK`,
            zeros added at the ends where they do not divide the kernel); by default the one that
            costs least for one row.
        threads: number of threads that share the rows of a sparse matrix; all cores by default.
        small: the model is so small that a caption by scipy is ready before Numba is: up to `LANES`
            rows at a time are left to it.

    Attributes:
        form: the form.
        stored: number of weights that it stores.
        size: number of weights of the kernel.
    """

    def __init__(
        self,
        kernel: Float[np.ndarray, "I O"],
        form: str = "",
        threads: int = 0,
        small: bool = False,
    ):
        kept = int(np.count_nonzero(kernel))
        stored = {"dense": kernel.size, "csr": kept, "blocks": BLOCK**2 * _count_blocks(kernel)}
        self.form = form or min(stored, key=lambda form: cost(form, stored[form], 1))
        self.size, self.stored, self._shape = kernel.size, stored[self.form], kernel.shape
        self._by_scipy = LANES if small and self.form == "csr" else 0
        if self.form == "dense":
            self._dense = np.ascontiguousarray(kernel.T)
            return
        side = BLOCK if self.form == "blocks" else 1
        matrix = sparse.csr_array(_pad(kernel, side).T)
        self._matrix = matrix if side == 1 else matrix.tobsr((BLOCK, BLOCK))
        weights = self._matrix.data
        if side > 1:
            weights = np.ascontiguousarray(weights.swapaxes(1, 2))
        starts, inputs = (
            part.astype(np.int32, copy=False).view(np.uint32)
            for part in (self._matrix.indptr, self._matrix.indices)
        )
        self._arrays = starts, inputs, weights
        threads = threads or cores()
        cuts = np.searchsorted(starts, np.arange(1, threads) * starts[-1] / threads)
        self._ends = [0, *cuts.tolist(), len(starts) - 1]

    def __call__(self, inputs: Float[np.ndarray, "... I"]) -> Float[np.ndarray, "... O"]:
        """Return the product."""
        rows = inputs.reshape(-1, self._shape[0])
        if self.form == "dense":
            found = rows @ self._dense.T
        else:
            found = self._multiply(rows)[: len(rows), : self._shape[1]]
        return found.reshape(*inputs.shape[:-1], self._shape[1])

    def kernel(self) -> Float[np.ndarray, "I O"]:
        """Return the dense weights."""
        if self.form == "dense":
            return self._dense.T
        return self._matrix.toarray()[: self._shape[1], : self._shape[0]].T

    def cost(self, rows: int) -> float:
        """Return the nanoseconds of one core, see `cost`."""
        return cost(self.form, self.stored, rows)

    def _multiply(self, rows: Float[np.ndarray, "N I"]) -> Float[np.ndarray, "M P"]:
        """Multiply by the sparse matrix; results are padded to whole lanes and blocks."""
        (count, width), (outputs, inputs) = rows.shape, self._matrix.shape
        many = count != 1
        if count <= self._by_scipy:
            found = self._matrix @ (rows.T if many else rows[0])
            return np.ascontiguousarray(found.T) if many else found[None]
        if many:
            groups = -(-count // LANES)
            vectors = np.zeros((groups * LANES, inputs), np.float32)
            vectors[:count, :width] = rows
            vectors = np.ascontiguousarray(vectors.reshape(groups, LANES, inputs).swapaxes(1, 2))
            results = np.empty((groups * LANES, outputs), np.float32)
        else:
            vectors = np.pad(rows[0], (0, inputs - width)) if width < inputs else rows[0]
            vectors = np.require(vectors, np.float32, ["C", "W"])  # as the kernel is compiled for
            results = np.empty(outputs, np.float32)
        self._run(_kernel(self.form, many), vectors, results, self.cost(count))
        return results.reshape(-1, outputs)

    def _run(self, kernel, vectors: np.ndarray, results: np.ndarray, nanoseconds: float) -> None:
        """Run a kernel, which holds no lock of Python's, on as many cores as are worth it."""
        ends = self._ends
        if len(ends) == 2 or nanoseconds < _WORTH_THREADS_NS:
            kernel(*self._arrays, vectors, results, 0, ends[-1])
            return
        first, *rest = itertools.pairwise(ends)
        others = [_pool.submit(kernel, *self._arrays, vectors, results, *span) for span in rest]
        kernel(*self._arrays, vectors, results, *first)
        for other in others:
            other.result()


def _pad(array: np.ndarray, multiple: int) -> np.ndarray:
    """Return an array with zeros at its ends, so that its sides are multiples."""
    sides = [(0, -size % multiple) for size in array.shape]
    return np.pad(array, sides) if any(added for _, added in sides) else array


def _count_blocks(kernel: np.ndarray) -> int:
    """Return the number of blocks with a weight."""
    kept = _pad(kernel != 0, BLOCK)
    rows, columns = kept.shape
    blocks = kept.reshape(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
    return int(np.count_nonzero(blocks.any(axis=(1, 3))))
