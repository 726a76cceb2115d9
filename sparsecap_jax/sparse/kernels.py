"""Products of pruned matrices with one vector or with several, compiled by Numba for this CPU.

Several vectors stand side by side, `LANES` of them in a register, so that each stored weight is
read once for all of them. A sum is kept in parts, since an addition would wait for the one before.
"""

import pickle
import threading
from collections.abc import Callable
from typing import Any, no_type_check

import numba
import numpy as np

from sparsecap_jax.sparse.forms import BLOCK, LANES

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
# Indices of signed integers might count from the end; unsigned ones need no such check.
_1, _2, _3, _4 = map(np.uint64, (1, 2, 3, 4))
_0_LANES = (np.float32(0),) * LANES
_0_BLOCK = (np.float32(0),) * BLOCK
_lock = threading.Lock()
_WEIGHTS = {"csr": "f4[::1]", "blocks": "f4[:, :, ::1]"}


def compile_kernel(form: str, many: bool = False, inputs: str = "u2") -> Callable[..., Any]:
    """Compile the kernel of a form, or take it from disk, where it is kept for later processes.

    Kernels of "csr" and "blocks" take `starts`, `outputs`, `inputs` and `weights` of the matrix
    (row o has the weights from `starts[o]` to `starts[o + 1]`, and makes output `outputs[o]`, or
    that block of them), the vectors, the results, to which they add, and the first row and the one
    after the last.

    Args:
        form: "csr", "blocks" (`weights [N, inputs, outputs]` of `BLOCK` x `BLOCK`), or "pack" or
            "words", see `_pack` and `_words`.
        many: vectors are `[G, I, LANES]` and results `[N, O]`, rather than `[I]` and `[O]`.
        inputs: dtype of `inputs`.
    """
    if form in _WEIGHTS:
        arrays = "f4[:, :, ::1], f4[:, ::1]" if many else "f4[::1], f4[::1]"
        matrix = f"u4[::1], u4[::1], {inputs}[::1], {_WEIGHTS[form]}"
        signature = f"void({matrix}, {arrays}, u8, u8)"
        function = {"csr": (_csr, _csr_many), "blocks": (_blocks, _blocks_many)}[form][many]
    elif form == "pack":
        signature, function = "void(f4[:, ::1], f4[:, :, ::1])", _pack
    else:
        sides = ", ".join(["u4[::1], u4[::1], f4[::1]"] * 2)
        signature, function = f"b1(i4[::1], {sides}, f4[:, ::1])", _words
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


@numba.njit(**_OPTIONS)
@no_type_check
def _add_lanes(results, output, sums, others):
    if results.shape[0] == LANES:
        for lane in range(LANES):  # from registers
            results[lane, output] += sums[lane] + others[lane]
    else:
        for lane in range(results.shape[0]):
            results[lane, output] += sums[lane] + others[lane]


@no_type_check
def _pack(rows, vectors):
    """Put rows `[N, I]` side by side, `[G, I', LANES]`, with 0 beyond I.

    Lanes of the last group that are left over have the last row again: nobody reads their sums.
    """
    count, width = rows.shape
    for group in range(vectors.shape[0]):
        for place in range(width):
            for lane in range(LANES):
                row = min(group * LANES + lane, count - 1)
                vectors[group, place, lane] = rows[row, place]
        vectors[group, width:] = 0


@no_type_check
def _words(tokens, starts, inputs, values, kernel_starts, kernel_outputs, kernel_weights, results):
    """Add the kernel's rows, by the entries of each token, to results `[N, O]`.

    Returns whether all tokens have entries: there are none for those out of range.
    """
    for row in range(tokens.shape[0]):
        token = np.uint64(tokens[row])  # a negative one is beyond all
        if token >= np.uint64(starts.shape[0] - 1):
            return False
        result = results[row]
        for entry in range(np.uint64(starts[token]), np.uint64(starts[token + _1])):
            value, place = values[entry], np.uint64(inputs[entry])
            first, end = np.uint64(kernel_starts[place]), np.uint64(kernel_starts[place + _1])
            for at in range(first, end):
                result[kernel_outputs[at]] += value * kernel_weights[at]
    return True


@no_type_check
def _csr(starts, outputs, inputs, weights, vector, result, first, end):
    for row in range(first, end):
        place, stop = np.uint64(starts[row]), np.uint64(starts[row + _1])
        one = two = three = four = np.float32(0)
        while place + _4 <= stop:
            one += weights[place] * vector[inputs[place]]
            two += weights[place + _1] * vector[inputs[place + _1]]
            three += weights[place + _2] * vector[inputs[place + _2]]
            four += weights[place + _3] * vector[inputs[place + _3]]
            place += _4
        while place < stop:
            one += weights[place] * vector[inputs[place]]
            place += _1
        result[outputs[row]] += (one + two) + (three + four)


@no_type_check
def _csr_many(starts, outputs, inputs, weights, vectors, results, first, end):
    for group in range(vectors.shape[0]):
        lanes, found = vectors[group], results[group * LANES : (group + 1) * LANES]
        for row in range(first, end):
            place, stop = np.uint64(starts[row]), np.uint64(starts[row + _1])
            even = odd = _0_LANES
            while place + _2 <= stop:
                even = _add(even, weights[place], lanes, inputs[place])
                odd = _add(odd, weights[place + _1], lanes, inputs[place + _1])
                place += _2
            if place < stop:
                even = _add(even, weights[place], lanes, inputs[place])
            _add_lanes(found, outputs[row], even, odd)


@no_type_check
def _blocks(starts, outputs, inputs, weights, vector, result, first, end):
    for line in range(first, end):
        even = odd = _0_BLOCK
        for block in range(np.uint64(starts[line]), np.uint64(starts[line + _1])):
            row = inputs[block] * _4
            even = _add_block(even, vector[row], weights, block, 0)
            odd = _add_block(odd, vector[row + _1], weights, block, 1)
            even = _add_block(even, vector[row + _2], weights, block, 2)
            odd = _add_block(odd, vector[row + _3], weights, block, 3)
        output = outputs[line] * _4
        for k in range(BLOCK):
            result[output + np.uint64(k)] += even[k] + odd[k]


@no_type_check
def _blocks_many(starts, outputs, inputs, weights, vectors, results, first, end):
    for group in range(vectors.shape[0]):
        lanes, found = vectors[group], results[group * LANES : (group + 1) * LANES]
        for line in range(first, end):
            one = two = three = four = _0_LANES
            for block in range(np.uint64(starts[line]), np.uint64(starts[line + _1])):
                for k in range(BLOCK):
                    row = inputs[block] * _4 + np.uint64(k)
                    one = _add(one, weights[block, k, 0], lanes, row)
                    two = _add(two, weights[block, k, 1], lanes, row)
                    three = _add(three, weights[block, k, 2], lanes, row)
                    four = _add(four, weights[block, k, 3], lanes, row)
            output = outputs[line] * _4
            _add_lanes(found, output, one, _0_LANES)
            _add_lanes(found, output + _1, two, _0_LANES)
            _add_lanes(found, output + _2, three, _0_LANES)
            _add_lanes(found, output + _3, four, _0_LANES)
