"""The part of METEOR's table of paraphrases that can match within some texts."""

import concurrent.futures
import pathlib
import re
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int

_LONGEST = 7  # words of a paraphrase
_BLOCK = 1 << 18
_SIZE = 1 << 24  # of each half of the table of phrases
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_EIGHT = b" " * 8  # after a text, so that eight bytes can be read from each of its places
_FIRST = np.array([(1 << 8 * size) - 1 for size in range(9)], np.uint64)


def paraphrase_rows(path: pathlib.Path, texts: Sequence[str]) -> Iterator[bytes]:
    """Yield the rows of METEOR's table of paraphrases that can match within `texts`.

    The table has 5 million rows, which Java takes longer to read than to score 5,000 images. Rows
    of plain words stay if both phrases occur in the texts. Phrases are looked up by hashes (a Bloom
    filter), so a few rows more may stay, which match nothing. All rows of other words stay.
    """
    occurs = np.zeros(2 * _SIZE, bool)
    for places in _phrases(texts):
        occurs[places] = True
    tail = b""
    for block in _unzipped(path):
        text = b"".join((tail, block, _EIGHT))
        letters = np.frombuffer(text, np.uint8)
        marks = np.flatnonzero((letters - 97 > 25) & (letters - 48 > 9) & (letters != 32))
        is_end = letters[marks] == 10
        ends = marks[is_end]
        odd = np.zeros(len(ends) + 1, bool)  # lines that are not of plain words
        odd[np.cumsum(is_end)[~is_end]] = True
        starts = np.concatenate([[0], ends + 1])
        lines = len(ends) // 3 * 3  # probability, phrase, paraphrase, ...
        tail = text[starts[lines] : -len(_EIGHT)]
        starts, ends, odd = (np.reshape(of[:lines], (-1, 3)) for of in (starts, ends, odd))
        rows = np.arange(len(starts))
        for column in (1, 2):
            places = _places(text, starts[rows, column], ends[rows, column])
            rows = rows[occurs[places].all(axis=0) | odd[rows, column]]
        spans = zip(starts[rows, 0].tolist(), ends[rows, 2].tolist(), strict=True)
        yield b"".join([text[start : end + 1] for start, end in spans])


def _phrases(texts: Sequence[str]) -> Iterator[Int[np.ndarray, "2 _"]]:
    """Yield the places of all phrases of one word, of two, ...

    METEOR normalises text first, which splits words at punctuation and drops the periods of
    acronyms: both forms count.
    """
    texts = list(dict.fromkeys(texts))
    texts += [re.sub(r"\.\.+", " ", text).replace(".", "") for text in texts if "." in text]
    plain = re.sub(rb"[^0-9a-z\n]+", b" ", "\n".join(texts).lower().encode())
    text = b"".join((b"\n", plain, b"\n", _EIGHT))
    letters = np.frombuffer(text, np.uint8)
    edges = np.flatnonzero(np.diff(letters > 32)) + 1
    starts, ends = edges[::2], edges[1::2]
    line = np.cumsum(letters == 10)[starts]
    for n in range(min(_LONGEST, len(starts))):
        inside = line[: len(line) - n] == line[n:]
        yield _places(text, starts[: len(starts) - n][inside], ends[n:][inside])


def _places(text: bytes, starts: np.ndarray, ends: np.ndarray) -> Int[np.ndarray, "2 _"]:
    """Return two places in the table for each phrase, from its length, first and last 8 bytes."""
    eight = np.ndarray(len(text) - 7, "<u8", text, strides=1)  # at each place of the text
    sizes = ends - starts
    few = np.minimum(sizes, 8)
    first, last = (eight[at] & _FIRST[few] for at in (starts, ends - few))
    mixed = (first * _FACTOR ^ last) + sizes.astype(np.uint64)
    mixed = (mixed ^ mixed >> np.uint64(32)) * _FACTOR
    places = np.stack([mixed >> np.uint64(40), (mixed >> np.uint64(16)) % _SIZE + _SIZE])
    return places.astype(np.int64)


def _unzipped(path: pathlib.Path) -> Iterator[bytes]:
    """Yield the content of a gzip file; the next block is unpacked while one is used."""
    unpack = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress
    with path.open("rb") as file, concurrent.futures.ThreadPoolExecutor(1) as pool:
        coming = pool.submit(unpack, file.read(_BLOCK))
        while block := file.read(_BLOCK):
            content, coming = coming.result(), pool.submit(unpack, block)
            yield content
        yield coming.result()
