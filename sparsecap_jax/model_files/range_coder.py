"""A range coder of bytes, vectorised: interleaved rANS, which NumPy alone reads and writes.

Symbols are bytes; each is coded with one of several tables of frequencies, which add up to 2**12.
Symbol `i` belongs to lane `i % lanes`. A lane is a state of 32 bits that is refilled by 16 bits
whenever it falls below 2**16; the words of all lanes lie in the order in which they are read.
Duda, "Asymmetric numeral systems", arXiv 1311.2540; Giesen, "Interleaved entropy coders", arXiv
1402.3392.
"""

import functools

import numpy as np

from sparsecap_jax.errors import CheckpointError

BITS = 12
TOTAL = 1 << BITS
"""Sum of the frequencies of a table."""

LEVELS = 44
"""Number of densities that have a table of their own, see `gap_table`."""

_LOW = 1 << 16
_ROOTS = (65536, 55109, 46341, 38968)  # 2**16 * 2**(-n / 4)


def quantized(counts: np.ndarray) -> np.ndarray:
    """Scale counts of 256 symbols to whole frequencies that add up to `TOTAL`, none lost."""
    counts = np.asarray(counts, np.int64)
    total = max(int(counts.sum()), 1)
    table = np.maximum(counts * TOTAL // total, counts > 0)
    while excess := int(table.sum()) - TOTAL:
        largest = int(table.argmax())
        table[largest] -= max(min(excess, int(table[largest]) // 2), -TOTAL)
    return table


@functools.cache
def gap_table(level: int) -> np.ndarray:
    """Return the frequencies of gaps between the kept of many cells, of density 2**(-level / 4).

    Gaps are geometrically distributed. The last symbol with a frequency is the escape: as many
    cells without a kept one. All is integer arithmetic, which is the same on every machine.
    """
    density = (_ROOTS[level % 4] >> level // 4) - (level == 0)
    tail, tails = TOTAL << 16, [TOTAL]
    while len(tails) < 256:
        tail = tail * (65536 - density) >> 16
        if tail >> 16 in (0, tails[-1]):
            break
        tails.append(tail >> 16)
    tails = tails if len(tails) > 1 else [TOTAL, 1]
    return np.pad(-np.diff([*tails, 0]), (0, 256 - len(tails)))


def escape(level: int) -> int:
    """Return the escape of a `gap_table`, which is the number of cells that it skips."""
    return int(np.flatnonzero(gap_table(level))[-1])


def level_of(kept: int, cells: int) -> int:
    """Return the level of the `gap_table` that is nearest to a density."""
    return int(np.clip(np.rint(-4 * np.log2(max(kept, 0.5) / max(cells, 1))), 0, LEVELS - 1))


def num_lanes(symbols: int) -> int:
    """Return how many lanes code so many symbols: a lane takes 4 bytes, and few are slow."""
    return max(min(symbols // 256, 1024), symbols // 1024, 1)


def encode(symbols: np.ndarray, tables: np.ndarray, chosen: np.ndarray) -> bytes:
    """Code symbols.

    Args:
        symbols: uint8 `[N]`.
        tables: int `[T, 256]`, frequencies.
        chosen: int `[N]`, the table of each symbol; its frequency there is not 0.

    Returns:
        The states of all lanes, 4 bytes each, and the words, 2 bytes each; little-endian.
    """
    lanes = num_lanes(len(symbols))
    states = np.full(lanes, _LOW, np.int64)
    places = chosen.astype(np.int64) * 256 + symbols
    frequencies = tables.ravel()
    starts = (np.cumsum(tables, axis=1) - tables).ravel()
    words = []
    for first in reversed(range(0, len(symbols), lanes)):
        place = places[first : first + lanes]
        state, frequency = states[: len(place)], frequencies[place]
        full = state >= frequency << (32 - BITS)
        words.append(state[full].astype("<u2"))  # the lower 16 bits
        state[full] >>= 16
        quotient, rest = np.divmod(state, frequency)
        state[:] = (quotient << BITS) + rest + starts[place]
    return states.astype("<u4").tobytes() + b"".join(word.tobytes() for word in reversed(words))


class Decoder:
    """Decodes symbols with some tables of frequencies, int `[T, 256]`."""

    def __init__(self, tables: np.ndarray):
        symbols = np.tile(np.arange(256, dtype=np.uint8), len(tables))
        frequencies, starts = tables.ravel(), np.cumsum(tables, axis=1) - tables
        self._symbols = np.repeat(symbols, frequencies)
        slots = np.tile(np.arange(TOTAL, dtype=np.int32), len(tables))
        # The frequency of a slot's symbol, and the slot's place among those of the symbol.
        packed = frequencies.astype(np.int32) << BITS
        slots += np.repeat(packed - starts.ravel().astype(np.int32), frequencies)
        self._slots = slots.view(np.uint32)

    def decode(self, content: bytes, chosen: np.ndarray) -> np.ndarray:
        """Return the uint8 symbols `[N]` that `encode` coded with the tables `chosen`.

        Raises:
            CheckpointError: the content is damaged or of another length.
        """
        count, lanes = len(chosen), num_lanes(len(chosen))
        if len(content) < 4 * lanes or len(content) % 2:
            raise CheckpointError(f"coded data of {len(content)} bytes for {count} symbols")
        # All is below 2**32, whatever the content: a state becomes at most
        # (2**20 - 1) * TOTAL + TOTAL - 1, and has less than 2**16 before it is refilled.
        states = np.frombuffer(content, "<u4", lanes).astype(np.uint32)
        words = np.frombuffer(content, "<u2", offset=4 * lanes)
        places, read = chosen.astype(np.uint32) << BITS, 0
        for first in range(0, count, lanes):
            place = places[first : first + lanes]
            state = states[: len(place)]
            place += state & (TOTAL - 1)
            packed = self._slots.take(place)
            state >>= BITS
            state *= packed >> BITS
            state += packed & (TOTAL - 1)
            empty = np.flatnonzero(state < _LOW)
            if read + len(empty) > len(words):
                raise CheckpointError("coded data ends early")
            state[empty] = state[empty] << 16 | words[read : read + len(empty)]
            read += len(empty)
        if read != len(words) or np.any(states != _LOW):
            raise CheckpointError("coded data is damaged")
        return self._symbols.take(places)
