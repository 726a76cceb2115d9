"""Products with pruned matrices, each in the form that is fastest for it.

A dense product streams every weight from memory; a sparse one touches the kept weights alone, at two
to three times the cost of a dense one each. The costs below were measured by
`benchmarks/sparse_runtime.py` on an AMD EPYC of 2 cores (Zen 5); their ratios decide the form of a
matrix, and whether a search runs on this runtime or on XLA.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float
from scipy import sparse

from sparsecap_jax.sparse.kernels import BLOCK, LANES, compiled

# Nanoseconds on one core, with one vector: of a weight of a dense matrix, of a kept weight in CSR, and
# of any weight of a kept 4 x 4 block; all from memory (from the cache, blocks take half of it).
ONE_ROW_NS = {"dense": 0.15, "csr": 0.32, "blocks": 0.16}
# The same with many: of a dense matrix, a constant, and a part for each vector; of the others, for
# up to `LANES` vectors.
DENSE_ROWS_NS = 0.15, 0.01
LANES_NS = {"csr": 0.43, "blocks": 0.22}
# Products that take less than this are not worth a second thread.
_WORTH_THREADS_NS = 400_000


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
    if form == "dense":
        constant, slope = DENSE_ROWS_NS
        each = max(constant, slope * rows)
    else:
        each = ONE_ROW_NS[form] if rows == 1 else LANES_NS[form] * -(-rows // LANES)
    return float(weights * each)


class Product:
    """The function from `inputs [..., I]` to `inputs @ kernel [..., O]`.

    Args:
        kernel: float32 weights.
        form: "dense", "csr" (compressed rows of outputs) or "blocks" (rows of `BLOCK` x `BLOCK`, zeros
            added at the ends where they do not divide the kernel); by default the one that costs
            least for one row.
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
            self._dense = np.ascontiguousarray(kernel.T)
            return
        side = BLOCK if self.form == "blocks" else 1
        self._padded = tuple(-(-size // side) * side for size in kernel.shape)
        matrix = sparse.csr_array(_pad(kernel, side).T)
        if self.form == "blocks":
            matrix = matrix.tobsr((BLOCK, BLOCK))
            matrix.data = np.ascontiguousarray(matrix.data.swapaxes(1, 2))
        places = (part.astype(np.uint32) for part in (matrix.indptr, matrix.indices))
        self._matrix = (*places, matrix.data)
        threads = threads or cores()
        cuts = np.searchsorted(matrix.indptr, np.arange(1, threads) * matrix.indptr[-1] / threads)
        self._ends = [0, *cuts.tolist(), len(matrix.indptr) - 1]

    def __call__(self, inputs: Float[np.ndarray, "... I"]) -> Float[np.ndarray, "... O"]:
        """Return the product."""
        rows = inputs.reshape(-1, self._shape[0])
        if self.form == "dense":
            found = rows @ self._dense.T
        else:
            found = self._multiply(rows)[: len(rows), : self._shape[1]]
        return found.reshape(*inputs.shape[:-1], -1)

    def kernel(self) -> Float[np.ndarray, "I O"]:
        """Return the dense weights."""
        if self.form == "dense":
            return self._dense.T
        starts, places, weights = self._matrix
        parts = places.astype(np.int32), starts.astype(np.int32)
        if self.form == "blocks":
            matrix = sparse.bsr_array((weights.swapaxes(1, 2), *parts), shape=self._padded[::-1])
        else:
            matrix = sparse.csr_array((weights, *parts), shape=self._padded[::-1])
        return matrix.toarray()[: self._shape[1], : self._shape[0]].T

    def cost(self, rows: int) -> float:
        """Return the nanoseconds of one core, see `cost`."""
        return cost(self.form, self.stored, rows)

    def _multiply(self, rows: Float[np.ndarray, "N I"]) -> Float[np.ndarray, "M P"]:
        """Multiply by the sparse matrix; results are padded to whole lanes and blocks."""
        (count, width), (inputs, outputs) = rows.shape, self._padded
        many = count != 1
        groups = -(-count // LANES)
        vectors = np.zeros((groups * LANES if many else 1, inputs), np.float32)
        vectors[:count, :width] = rows
        if many:
            vectors = np.ascontiguousarray(vectors.reshape(groups, LANES, inputs).swapaxes(1, 2))
            results = np.empty((groups * LANES, outputs), np.float32)
        else:
            vectors, results = vectors[0], np.empty(outputs, np.float32)
        kernel, ends = compiled(self.form, many), self._ends
        if len(ends) == 2 or self.cost(count) < _WORTH_THREADS_NS:
            kernel(*self._matrix, vectors, results, 0, ends[-1])
            return results.reshape(-1, outputs)
        spans = zip(ends[1:-1], ends[2:], strict=True)
        others = [_pool.submit(kernel, *self._matrix, vectors, results, *span) for span in spans]
        kernel(*self._matrix, vectors, results, 0, ends[1])
        for other in others:
            other.result()
        return results.reshape(-1, outputs)


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
