"""Products with pruned matrices, each in the form that is fastest for it.

A dense product streams every weight from memory; a sparse one touches the kept weights alone, at
two to three times the cost of a dense one each. The costs below were measured by
`benchmarks/sparse_runtime.py` on an AMD EPYC of 2 cores (Zen 5); their ratios decide the form of a
matrix, and whether a search runs on this runtime or on XLA.
"""

import itertools
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float
from scipy import sparse

BLOCK = 4
# Nanoseconds on one core, at one row: of a weight of a dense matrix, which comes from memory, of a
# kept weight in CSR, and of any weight of a kept 4 x 4 block.
ONE_ROW_NS = {"dense": 0.15, "csr": 0.4, "blocks": 0.31}
# The same at many rows together: a constant, and a part for each row.
MANY_ROWS_NS = {"dense": (0.15, 0.01), "csr": (2.5, 0.11), "blocks": (1.5, 0.27)}
# Products that take less than this are not worth a second thread.
_WORTH_THREADS_NS = 200_000


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _renew_pool() -> None:
    global _pool
    _pool = ThreadPoolExecutor(cores(), "sparse")


_renew_pool()
if hasattr(os, "register_at_fork"):  # a fork has the pool but none of its threads
    os.register_at_fork(after_in_child=_renew_pool)


def cost(form: str, weights: int | float, rows: int) -> float:
    """Return the nanoseconds of a product of one core with `rows` rows.

    `weights` are those that the form stores: all of them, the kept ones, or those of kept blocks.
    """
    constant, slope = MANY_ROWS_NS[form]
    together = max(constant, slope * rows)
    each = together if form == "dense" else min(rows * ONE_ROW_NS[form], together)
    return float(weights * each)


class Product:
    """The function from `inputs [..., I]` to `inputs @ kernel [..., O]`.

    Args:
        kernel: float32 weights.
        form: "dense", "csr" or "blocks" (block rows of `BLOCK` x `BLOCK`, zeros added at the ends
            where they do not divide the kernel); by default the one that costs least for one row.
        threads: number of threads that share the rows of a sparse matrix; all cores by default.

    Attributes:
        form: the form.
        stored: number of weights that it stores.
        size: number of weights of the kernel.
    """

    def __init__(self, kernel: Float[np.ndarray, "I O"], form: str = "", threads: int = 0):
        kept = int(np.count_nonzero(kernel))
        stored = {"dense": kernel.size, "csr": kept, "blocks": BLOCK**2 * _count_blocks(kernel)}
        self.form = form or min(stored, key=lambda form: cost(form, stored[form], 1))
        self.size, self.stored, self._shape = kernel.size, stored[self.form], kernel.shape
        if self.form == "dense":
            self._parts = [np.ascontiguousarray(kernel.T)]
            return
        if self.form == "blocks":
            kernel = np.pad(kernel, [(0, -size % BLOCK) for size in kernel.shape])
        matrix = sparse.csr_array(kernel.T)
        parts = _split(matrix, threads or cores(), BLOCK if self.form == "blocks" else 1)
        if self.form == "blocks":
            parts = [part.tobsr((BLOCK, BLOCK)) for part in parts]
        self._parts = parts

    def __call__(self, inputs: Float[np.ndarray, "... I"]) -> Float[np.ndarray, "... O"]:
        """Return the product."""
        rows = inputs.reshape(-1, self._shape[0])
        if self.form == "blocks" and self._shape[0] % BLOCK:
            rows = np.pad(rows, [(0, 0), (0, -self._shape[0] % BLOCK)])
        parts, nanoseconds = self._parts, self.cost(len(rows))
        if len(parts) == 1 or nanoseconds < _WORTH_THREADS_NS:
            results = [self._multiply(part, rows) for part in parts]
        else:
            others = [_pool.submit(self._multiply, part, rows) for part in parts[1:]]
            results = [self._multiply(parts[0], rows), *(other.result() for other in others)]
        result = results[0] if len(results) == 1 else np.concatenate(results, axis=-1)
        return result[:, : self._shape[1]].reshape(*inputs.shape[:-1], -1)

    def kernel(self) -> Float[np.ndarray, "I O"]:
        """Return the dense weights."""
        parts = [part if self.form == "dense" else part.toarray() for part in self._parts]
        return np.concatenate(parts)[: self._shape[1], : self._shape[0]].T

    def cost(self, rows: int) -> float:
        """Return the nanoseconds of one core, see `cost`."""
        return cost(self.form, self.stored, rows)

    def _multiply(self, part, rows: np.ndarray) -> np.ndarray:
        """Multiply a part of the kernel; scipy's kernels hold no lock meanwhile."""
        if self.form == "dense":
            return rows @ part.T
        if len(rows) == 1:
            return (part @ rows[0])[None]
        constant, _ = MANY_ROWS_NS[self.form]
        if len(rows) * ONE_ROW_NS[self.form] <= constant:
            return np.stack([part @ row for row in rows])
        return np.ascontiguousarray((part @ np.ascontiguousarray(rows.T)).T)


def _count_blocks(kernel: np.ndarray) -> int:
    """Return the number of blocks with a weight."""
    kept = np.pad(kernel != 0, [(0, -size % BLOCK) for size in kernel.shape])
    rows, columns = kept.shape
    blocks = kept.reshape(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
    return int(np.count_nonzero(blocks.any(axis=(1, 3))))


def _split(matrix: sparse.csr_array, count: int, multiple: int) -> list[sparse.csr_array]:
    """Cut a matrix into runs of rows with about the same number of weights.

    The runs are of a multiple of `multiple` rows.
    """
    shares = np.arange(1, count) * matrix.nnz / count
    cuts = np.searchsorted(matrix.indptr, shares) // multiple * multiple
    ends = [0, *cuts.tolist(), matrix.shape[0]]
    return [matrix[start:end] for start, end in itertools.pairwise(ends) if end > start]
