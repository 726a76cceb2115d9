"""Products of pruned matrices with one vector or with several, compiled by Numba for this CPU.

Several vectors stand side by side, `LANES` of them in a register, so that each stored weight is
read once for all of them. A sum is kept in two halves, since an addition would wait for the one
before.
"""

import pickle
import threading
from collections.abc import Callable
from typing import no_type_check

import numba
import numpy as np

from sparsecap_jax.sparse.forms import BLOCK, LANES

_OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
# Indices of signed integers might count from the end; unsigned ones need no such check.
_1, _2, _3, _4, _8 = map(np.uint64, (1, 2, 3, 4, 8))
_0_LANES = (np.float32(0),) * LANES
_0_BLOCK = (np.float32(0),) * BLOCK
_lock = threading.Lock()


def compile_kernel(form: str, many: bool) -> Callable[..., None]:
    """Compile the kernel of a form, or take it from disk, where it is kept for later processes.

    It takes `starts`, `inputs` and `weights` of the matrix (rows of outputs, or of blocks: row o
    has the weights from `starts[o]` to `starts[o + 1]`), the vectors, the results to be written,
    and the first row and the one after the last.

    Args:
        form: "csr" or "blocks" (`weights [N, inputs, outputs]` of `BLOCK` x `BLOCK`).
        many: vectors are `[G, I, LANES]` and results `[G * LANES, O]`, rather than `[I]` and `[O]`.
    """
    weights = {"csr": "f4[::1]", "blocks": "f4[:, :, ::1]"}[form]
    arrays = "f4[:, :, ::1], f4[:, ::1]" if many else "f4[::1], f4[::1]"
    signature = f"void(u4[::1], u4[::1], {weights}, {arrays}, u8, u8)"
    function = {"csr": (_csr, _csr_many), "blocks": (_blocks, _blocks_many)}[form][many]
    with _lock:
        before, numba.config.SLP_VECTORIZE = numba.config.SLP_VECTORIZE, 1  # lanes to registers
        try:
            return numba.njit(signature, cache=True, **_OPTIONS)(function)
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError):
            return numba.njit(signature, **_OPTIONS)(function)  # no folder to keep it in
        finally:
            numba.config.SLP_VECTORIZE = before


@numba.njit(**_OPTIONS)
@no_type_check
def _add(sums, weight, lanes, row):
    return (
        sums[0] + weight * lanes[row, 0],
        sums[1] + weight * lanes[row, 1],
        sums[2] + weight * lanes[row, 2],
        sums[3] + weight * lanes[row, 3],
        sums[4] + weight * lanes[row, 4],
        sums[5] + weight * lanes[row, 5],
        sums[6] + weight * lanes[row, 6],
        sums[7] + weight * lanes[row, 7],
    )


@numba.njit(**_OPTIONS)
@no_type_check
def _add_block(sums, value, weights, block, row):
    return (
        sums[0] + value * weights[block, row, 0],
        sums[1] + value * weights[block, row, 1],
        sums[2] + value * weights[block, row, 2],
        sums[3] + value * weights[block, row, 3],
    )


@no_type_check
def _csr(starts, inputs, weights, vector, result, first, end):
    for output in range(first, end):
        place, stop = np.uint64(starts[output]), np.uint64(starts[output + _1])
        even = odd = np.float32(0)
        while place + _2 <= stop:
            even += weights[place] * vector[inputs[place]]
            odd += weights[place + _1] * vector[inputs[place + _1]]
            place += _2
        if place < stop:
            even += weights[place] * vector[inputs[place]]
        result[output] = even + odd


@no_type_check
def _csr_many(starts, inputs, weights, vectors, results, first, end):
    for group in range(vectors.shape[0]):
        lanes, found = vectors[group], results[group * LANES : (group + 1) * LANES]
        for output in range(first, end):
            place, stop = np.uint64(starts[output]), np.uint64(starts[output + _1])
            even = odd = _0_LANES
            while place + _2 <= stop:
                even = _add(even, weights[place], lanes, inputs[place])
                odd = _add(odd, weights[place + _1], lanes, inputs[place + _1])
                place += _2
            if place < stop:
                even = _add(even, weights[place], lanes, inputs[place])
            for lane in range(LANES):
                found[lane, output] = even[lane] + odd[lane]


@no_type_check
def _blocks(starts, inputs, weights, vector, result, first, end):
    for output in range(first, end):
        even = odd = _0_BLOCK
        for block in range(np.uint64(starts[output]), np.uint64(starts[output + _1])):
            row = inputs[block] * _4
            even = _add_block(even, vector[row], weights, block, 0)
            odd = _add_block(odd, vector[row + _1], weights, block, 1)
            even = _add_block(even, vector[row + _2], weights, block, 2)
            odd = _add_block(odd, vector[row + _3], weights, block, 3)
        for k in range(BLOCK):
            result[output * _4 + np.uint64(k)] = even[k] + odd[k]


@no_type_check
def _blocks_many(starts, inputs, weights, vectors, results, first, end):
    for group in range(vectors.shape[0]):
        lanes, found = vectors[group], results[group * LANES : (group + 1) * LANES]
        for output in range(first, end):
            one = two = three = four = _0_LANES
            for block in range(np.uint64(starts[output]), np.uint64(starts[output + _1])):
                for k in range(BLOCK):
                    row = inputs[block] * _4 + np.uint64(k)
                    one = _add(one, weights[block, k, 0], lanes, row)
                    two = _add(two, weights[block, k, 1], lanes, row)
                    three = _add(three, weights[block, k, 2], lanes, row)
                    four = _add(four, weights[block, k, 3], lanes, row)
            for lane in range(LANES):
                found[lane, output * _4] = one[lane]
                found[lane, output * _4 + _1] = two[lane]
                found[lane, output * _4 + _2] = three[lane]
                found[lane, output * _4 + _3] = four[lane]
