"""Products with pruned matrices, each in the form that is fastest for it.

A dense product streams every weight from memory; a sparse one touches the kept weights alone, at
about twice the cost of a dense one each.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from sparsecap_jax.machine import cores
from sparsecap_jax.sparse.forms import BLOCK, LANES, WORD_NS, cost
from sparsecap_jax.sparse.threads import run_parts

# Products that take less than this are not worth a second thread.
_WORTH_THREADS_NS = 300_000
# What scipy takes for a kept weight and a row, and for how long a process stays with it: Numba is
# four times as fast with a few rows, but takes half a second to start.
_SCIPY_NS = 0.6
_scipy_left = 500e6


@functools.cache
def _kernel(form: str, many: bool = False, inputs: str = "u2") -> Callable[..., Any]:
    """Return a compiled kernel; importing Numba takes a quarter of a second."""
    from sparsecap_jax.sparse.kernels import compile_kernel

    return compile_kernel(form, many, inputs)


def _scipy_pays(products: int) -> bool:
    """Return whether scipy should multiply so many weights, and count the time."""
    global _scipy_left
    _scipy_left -= _SCIPY_NS * products
    return _scipy_left > 0


class Product:
    """The function from `inputs [..., I]` to `start + inputs @ kernel [..., O]`.

    Args:
        kernel: float32 weights.
        form: "dense", "csr" (compressed rows of outputs) or "blocks" (rows of `BLOCK` x `BLOCK`,
            zeros added at the ends where they do not divide the kernel); by default the one that
            costs least for one row.
        threads: number of threads that share the outputs; all cores by default.
        small: the model is so small that a caption by scipy is ready before Numba is: products are
            left to it until those of all such models have taken half a second.

    Attributes:
        form: the form.
        stored: number of weights that it stores.
        size: number of weights of the kernel.
        shape: `I, O`.
    """

    def __init__(
        self,
        kernel: Float[np.ndarray, "I O"],
        form: str = "",
        threads: int = 0,
        small: bool = False,
    ):
        kept = kernel != 0
        stored = {
            "dense": kernel.size,
            "csr": int(np.count_nonzero(kept)),
            "blocks": BLOCK**2 * int(np.count_nonzero(_kept_blocks(kept))),
        }
        self.form = form or min(stored, key=lambda form: cost(form, stored[form], 1))
        self.size, self.stored, self.shape = kernel.size, stored[self.form], kernel.shape
        self._small = small and self.form == "csr"
        threads = threads or cores()
        if self.form == "dense":
            self._dense = np.ascontiguousarray(kernel.T)
            self._ends = [kernel.shape[1] * part // threads for part in range(threads + 1)]
            return
        starts, inputs, weights = compress(kernel.T, BLOCK if self.form == "blocks" else 1)
        cuts = np.searchsorted(starts, np.arange(1, threads) * starts[-1] / threads)
        self._ends = [0, *cuts.tolist(), len(starts) - 1]
        outputs = np.arange(len(starts) - 1, dtype=np.uint32)
        if not self._small:
            parts = itertools.pairwise(self._ends)
            outputs = np.concatenate([_by_length(starts, *part) for part in parts])
            starts, inputs, weights = _in_order(outputs, starts, inputs, weights)
        self._arrays = starts, outputs, inputs, weights

    def __call__(
        self, inputs: Float[np.ndarray, "... I"], start: Any = 0.0
    ) -> Float[np.ndarray, "... O"]:
        """Return the product, added to `start`, which is broadcast."""
        results = np.empty((*inputs.shape[:-1], self.shape[1]), np.float32)
        results[...] = start
        self.add(inputs, results)
        return results

    def add(self, inputs: Float[np.ndarray, "... I"], results: Float[np.ndarray, "... O"]) -> None:
        """Add the product to `results`, which is contiguous."""
        width, outputs = self.shape
        rows, sums = inputs.reshape(-1, width), results.reshape(-1, outputs)
        if self.form == "dense":
            self._run(functools.partial(self._add_dense, rows, sums), self.cost(len(rows)))
        elif self._small and len(rows) and _scipy_pays(self.stored * len(rows)):
            sums += self._by_library(rows)
        elif len(rows):
            self._multiply(rows, sums)

    def kernel(self) -> Float[np.ndarray, "I O"]:
        """Return the dense weights."""
        if self.form == "dense":
            return self._dense.T
        (width, height), (starts, outputs, inputs, weights) = self.shape, self._arrays
        side = BLOCK if self.form == "blocks" else 1
        found = np.zeros((-(-width // side), side, -(-height // side), side), np.float32)
        blocks = weights.reshape(-1, side, side)
        found[inputs, :, np.repeat(outputs, np.diff(starts))] = blocks
        return found.reshape(found.shape[0] * side, -1)[:width, :height]

    def cost(self, rows: int) -> float:
        """Return the nanoseconds of one core, see `forms.cost`.

        Products by scipy count as compiled ones, although several rows take it four times as long:
        all products of a small model, of under 500,000 weights, take about a millisecond at most,
        which is far less than starting XLA in its place.
        """
        return cost(self.form, self.stored, rows)

    @functools.cached_property
    def _library(self) -> Any:
        from scipy import sparse

        starts, _, inputs, weights = self._arrays
        places = inputs.astype(np.int32), starts.view(np.int32)
        return sparse.csr_array((weights, *places), shape=self.shape[::-1])

    def _by_library(self, rows: Float[np.ndarray, "N I"]) -> Float[np.ndarray, "N O"]:
        found = self._library @ (rows.T if len(rows) > 1 else rows[0])
        return found.T.reshape(len(rows), -1)

    def _multiply(self, rows: Float[np.ndarray, "N I"], sums: Float[np.ndarray, "N O"]) -> None:
        """Add the product with the sparse matrix; sides are padded to whole lanes and blocks."""
        count, many = len(rows), len(rows) > 1
        side = BLOCK if self.form == "blocks" else 1
        width, height = (size + -size % side for size in self.shape)
        fits = height == self.shape[1]
        results = sums if fits else np.zeros((count, height), np.float32)
        rows = _as_compiled(rows)
        if many:
            vectors = np.empty((-(-count // LANES), width, LANES), np.float32)
            _kernel("pack")(rows, vectors)
            kernel, operands = _kernel(self.form, True, self._index), (vectors, results)
        else:
            vector = rows[0] if width == self.shape[0] else np.pad(rows[0], (0, width - rows.size))
            kernel, operands = _kernel(self.form, False, self._index), (vector, results[0])
        self._run(functools.partial(kernel, *self._arrays, *operands), self.cost(count))
        if not fits:
            sums += results[:, : self.shape[1]]

    @property
    def _index(self) -> str:
        return f"u{self._arrays[2].itemsize}"

    def _add_dense(self, rows: np.ndarray, sums: np.ndarray, first: int, end: int) -> None:
        sums[:, first:end] += rows @ self._dense[first:end].T

    def _run(self, add: Callable[[int, int], None], nanoseconds: float) -> None:
        """Add the outputs from a first to before a last one, on as many cores as are worth it.

        Neither kernels nor NumPy's products hold a lock of Python's.
        """
        ends = self._ends if nanoseconds >= _WORTH_THREADS_NS else [0, self._ends[-1]]
        run_parts([functools.partial(add, *span) for span in itertools.pairwise(ends)])


class WordProduct:
    """The product of embedded words `embedding [V, I]` with `kernel [I, O]`, both pruned.

    Only the entries of a word that are not 0 take part, each with its row of the kernel.

    Attributes:
        form, size, shape: as of a `Product` with the kernel.
        stored: mean number of weights that a word takes.
    """

    def __init__(self, embedding: Float[np.ndarray, "V I"], kernel: Float[np.ndarray, "I O"]):
        self._arrays: tuple[np.ndarray, ...] = ()
        for starts, places, values in (compress(embedding), compress(kernel)):
            self._arrays += starts, places.astype(np.uint32), values
        self.form, self.size, self.shape = "words", kernel.size, kernel.shape
        self.stored = word_weights(embedding, kernel)

    def add(self, tokens: Integer[np.ndarray, "..."], results: Float[np.ndarray, "... O"]) -> None:
        """Add the products to `results`, which is contiguous.

        Raises:
            IndexError: a token is none of the embedding's.
        """
        tokens = _as_compiled(tokens, np.int32).reshape(-1)
        if not _kernel("words")(tokens, *self._arrays, results.reshape(-1, self.shape[1])):
            raise IndexError(f"tokens {tokens}: expected less than {len(self._arrays[0]) - 1}")

    def kernel(self) -> Float[np.ndarray, "I O"]:
        """Return the dense weights."""
        starts, outputs, weights = self._arrays[3:]
        found = np.zeros(self.shape, np.float32)
        found[np.repeat(np.arange(len(found)), np.diff(starts)), outputs] = weights
        return found

    def cost(self, rows: int) -> float:
        """Return the nanoseconds of one core."""
        return WORD_NS * self.stored * rows


def word_weights(embedding: Float[np.ndarray, "V I"], kernel: Float[np.ndarray, "I O"]) -> float:
    """Return the mean number of kept weights of the kernel that a word is multiplied with."""
    entries, kept = (
        np.count_nonzero(side, axis=axis) for side, axis in ((embedding, 0), (kernel, 1))
    )
    return float(entries @ kept) / max(len(embedding), 1)


def compress(
    matrix: Float[np.ndarray, "N M"], side: int = 1
) -> tuple[Integer[np.ndarray, " S"], Integer[np.ndarray, " K"], np.ndarray]:
    """Return where the rows of a matrix start, and columns and values of what is kept in them.

    With a `side`, rows and columns are of blocks, and values `[K, columns, rows]` of a block.
    """
    matrix = np.ascontiguousarray(_pad(matrix, side))
    kept = matrix != 0 if side == 1 else _kept_blocks(matrix != 0)
    starts = np.zeros(len(kept) + 1, np.uint32)
    np.cumsum(np.count_nonzero(kept, axis=1), out=starts[1:])
    columns = np.nonzero(kept)[1].astype(np.uint16 if kept.shape[1] <= 2**16 else np.uint32)
    if side == 1:
        return starts, columns, matrix[kept]
    blocks = matrix.reshape(len(kept), side, -1, side).swapaxes(1, 2)[kept]
    return starts, columns, np.ascontiguousarray(blocks.swapaxes(1, 2))


def _by_length(starts: np.ndarray, first: int, end: int) -> np.ndarray:
    """Return rows by their number of weights: loops of equal length are predicted by the CPU."""
    lengths = np.diff(starts[first : end + 1])
    return (first + np.argsort(lengths, kind="stable")).astype(np.uint32)


def _in_order(rows: np.ndarray, starts: np.ndarray, *parts: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the starts and the weights of rows in another order."""
    lengths = np.diff(starts)[rows]
    ordered = np.zeros_like(starts)
    np.cumsum(lengths, out=ordered[1:])
    places = np.arange(starts[-1]) + np.repeat(
        starts[:-1][rows].astype(int) - ordered[:-1], lengths
    )
    return ordered, *(part[places] for part in parts)


def _as_compiled(array: np.ndarray, dtype: Any = np.float32) -> np.ndarray:
    """Return an array as kernels take it: contiguous and writable."""
    flags = array.flags
    if array.dtype == dtype and flags.c_contiguous and flags.writeable:
        return array
    return np.array(array, dtype, order="C")


def _pad(array: np.ndarray, multiple: int) -> np.ndarray:
    """Return an array with zeros at its ends, so that its sides are multiples."""
    sides = [(0, -size % multiple) for size in array.shape]
    return np.pad(array, sides) if any(added for _, added in sides) else array


def _kept_blocks(kept: np.ndarray) -> np.ndarray:
    """Return which blocks have a weight, `[rows, columns]` of blocks."""
    kept = np.ascontiguousarray(_pad(kept, BLOCK))
    four = kept.view(np.uint32)  # of a row's
    return np.bitwise_or.reduce(four.reshape(-1, BLOCK, four.shape[1]), axis=1) != 0
