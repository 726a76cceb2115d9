"""Reading LMDB databases page by page, every place checked.

The LMDB library maps the file and follows whatever a page says: a file that was cut or damaged ends
the process with SIGBUS. Here a faulty page is an error. Source of the format: `mdb.c` of LMDB 0.9,
as 64-bit machines write it (little-endian).
"""

import os
import pathlib
import struct

from sparsecap_jax.arrays import IMAGE_BYTES
from sparsecap_jax.data.records import data_error
from sparsecap_jax.files import open_regular

_BRANCH, _LEAF, _BIG = 1, 2, 1  # kinds of pages; a value that has pages of its own
_HEADER = struct.Struct("<10xHH2x")  # kind, end of the offsets of nodes
# Magic number, version, page size, root of the records, last page, transaction.
_META = struct.Struct("<16xII16xI84xQQQ")
_NODE = struct.Struct("<HHHH")  # size of the value or page number (low, high), flags, size of key
_PAGE = struct.Struct("<Q")
_MAGIC, _PAGE_SIZES = 0xBEEFC0DE, [2**n for n in range(8, 17)]
_EMPTY = 2**64 - 1
_MAX_KEY = 511  # bytes, LMDB's own limit


def read_places(path: pathlib.Path) -> dict[bytes, tuple[int, int]]:
    """Return where the value of each key lies in a file, in order of the keys: start and size.

    Raises:
        DataError: not an LMDB database, truncated, or damaged.
    """
    problem = f"{path}: not an LMDB database, or a damaged one"
    with data_error(problem, OSError, struct.error, ValueError), open_regular(path) as file:
        return _places(file.fileno())


def _places(file: int) -> dict[bytes, tuple[int, int]]:
    root, page_size, end = _check_metas(file)
    places: dict[bytes, tuple[int, int]] = {}
    pages, seen = [root] if root != _EMPTY else [], set()
    while pages:
        number = pages.pop()
        start = number * page_size
        if number in seen or start + page_size > end:
            raise ValueError(f"page {number} comes twice, or lies beyond the end")
        seen.add(number)
        page = os.pread(file, page_size, start)
        kind, lower = _HEADER.unpack_from(page)
        if kind not in (_BRANCH, _LEAF):
            raise ValueError(f"page {number} is neither branch nor leaf")
        count = max(lower - _HEADER.size, 0) // 2
        children = []
        for place in struct.unpack_from(f"<{count}H", page, _HEADER.size):
            low, high, flags, key_size = _NODE.unpack_from(page, place)
            if kind == _BRANCH:
                children.append(low | high << 16 | flags << 32)
                continue
            key = page[place + _NODE.size : place + _NODE.size + key_size]
            if key_size > _MAX_KEY:
                raise ValueError(f"key {key!r:.40} has {key_size} bytes, over {_MAX_KEY}")
            place, size = start + place + _NODE.size + key_size, low | high << 16
            if flags == _BIG:
                place = _PAGE.unpack_from(page, place - start)[0] * page_size + _HEADER.size
            elif flags:
                raise ValueError(f"key {key!r:.40} has a database of its own")
            if place + size > end or size > IMAGE_BYTES:
                raise ValueError(f"key {key!r:.40} has {size} bytes beyond the end")
            places[key] = place, size
        pages += reversed(children)
    return places


def _check_metas(file: int) -> tuple[int, int, int]:
    """Return the page of the root, the size of a page and that of the file."""
    page_size, end = _META.unpack(os.pread(file, _META.size, 0))[2], os.fstat(file).st_size
    if page_size not in _PAGE_SIZES:
        raise ValueError(f"pages of {page_size} bytes")
    metas = [_META.unpack(os.pread(file, _META.size, n * page_size)) for n in range(2)]
    if {meta[:3] for meta in metas} != {(_MAGIC, 1, page_size)}:
        raise ValueError("its first two pages are not those of one")
    *_, root, last, _ = max(metas, key=lambda meta: meta[-1])  # of the last transaction
    if end < (last + 1) * page_size:
        raise ValueError(f"truncated: {end} bytes, expected {(last + 1) * page_size}")
    return root, page_size, end
