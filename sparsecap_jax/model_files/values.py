"""Values as bytes: those that a range coder makes smaller, and those that are as good as random.

- `float32`: the exponent is coded; sign and mantissa (24 bits) are kept as they are. Lossless.
- `float16`: sign, exponent and two bits of the mantissa are coded, its last byte is kept. The error
  is at most `2**-11` of a value, or `2**-25` where that is more.
- `int8`: multiples of a step, one for each output, from -127 to 127, all coded. The step is the
  smallest `2**(n / 8)` that is at least the largest magnitude / 127 and the root mean square / 20;
  the error is at most half a step. Only for matrices; vectors are stored as float16 instead.
"""

import numpy as np

from sparsecap_jax.errors import CheckpointError

FORMS = ("float32", "float16", "int8")
RAW_BYTES = {"float32": 3, "float16": 1, "int8": 0}
"""Bytes of a value that are not coded."""

_STEPS_PER_RMS = 20
_LARGEST = 1e38  # what int8 rounds up to a float32
_ROOTS = np.array(
    [1.0, 1.0905077, 1.1892071, 1.2968396, 1.4142135, 1.5422108, 1.6817929, 1.8340081], np.float32
)  # 2**(n / 8)


def form_of(values: np.ndarray, form: str, rank: int) -> str:
    """Return the form that values of a tensor of `rank` get where `form` is wanted."""
    if form == "int8" and (rank < 2 or not np.all(np.abs(values) < _LARGEST)):
        form = "float16"
    with np.errstate(over="ignore"):
        if form == "float16" and np.any(np.isinf(values.astype(np.float16)) & np.isfinite(values)):
            form = "float32"
    return form


def split(values: np.ndarray, form: str) -> tuple[np.ndarray, bytes]:
    """Return the coded byte of each value, uint8 `[N]`, and the other bytes of all; not of int8."""
    if form == "float32":
        words = values.astype("<f4").view("<u4")
        raw = (words & 0x7FFFFF) | (words >> 31 << 23)
        return (words >> 23).astype(np.uint8), raw.view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    words = values.astype("<f2").view("<u2")
    return (words >> 8).astype(np.uint8), words.astype(np.uint8).tobytes()


def join(coded: np.ndarray, raw: bytes, form: str) -> np.ndarray:
    """Return the float32 values that `split` took apart."""
    if form == "float32":
        words = np.zeros(len(coded), "<u4")
        words.view(np.uint8).reshape(-1, 4)[:, :3] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        sign = (words & 0x800000) << 8
        words &= 0x7FFFFF
        words |= sign
        words |= coded.astype("<u4") << 23
        return words.view("<f4").astype(np.float32, copy=False)
    words = np.frombuffer(raw, np.uint8).astype("<u2")
    words |= coded.astype("<u2") << 8
    return words.view("<f2").astype(np.float32)


def steps(exponents: np.ndarray) -> np.ndarray:
    """Return the float32 steps `2**(exponents / 8)`."""
    return np.ldexp(_ROOTS[exponents & 7], exponents >> 3)


def quantize(
    values: np.ndarray, output: np.ndarray, outputs: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Round values to multiples of the step of their output.

    Args:
        values: float32 `[N]`.
        output: int `[N]`, the output of each, below `outputs`.
        outputs: number of outputs.

    Returns:
        Multiples plus 128, uint8 `[N]`; for each output its exponent above the lowest, uint8; and
        the lowest exponent, see `steps`.
    """
    largest = np.zeros(outputs)
    np.maximum.at(largest, output, np.abs(values))
    counts = np.bincount(output, minlength=outputs)
    squares = np.bincount(output, np.square(values, dtype=np.float64), outputs)
    least = np.maximum(largest / 127, np.sqrt(squares / np.maximum(counts, 1)) / _STEPS_PER_RMS)
    used = least > 0
    if not used.any():
        return np.full(len(values), 128, np.uint8), np.zeros(outputs, np.uint8), 0
    exponents = np.zeros(outputs, np.int64)
    exponents[used] = np.ceil(8 * np.log2(least[used])).astype(np.int64)
    exponents[used] += steps(exponents[used]) < least[used].astype(np.float32)
    exponents = np.maximum(exponents, max(exponents[used].max() - 255, MIN_EXPONENT))
    lowest = int(exponents[used].min())
    exponents[~used] = np.bincount(exponents[used] - lowest).argmax() + lowest
    multiples = np.rint(values / steps(exponents)[output]).astype(np.int64)
    return (multiples + 128).astype(np.uint8), (exponents - lowest).astype(np.uint8), lowest


MIN_EXPONENT, MAX_EXPONENT = -8 * 126, 8 * 124


def dequantize(
    coded: np.ndarray, output: np.ndarray, exponents: np.ndarray, lowest: int
) -> np.ndarray:
    """Return the float32 values that `quantize` rounded."""
    if np.any(coded == 0):
        raise CheckpointError("an int8 value of -128")
    multiples = coded.astype(np.float32) - np.float32(128)
    with np.errstate(over="ignore", invalid="ignore"):  # of a hostile file
        return multiples * steps(exponents.astype(np.int64) + lowest)[output]
