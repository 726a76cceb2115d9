"""What a reader is, and the table of all."""

import dataclasses
import pathlib
from collections.abc import Callable

import captioner_runs
import store_files

from sparsecap_jax.errors import DataError
from sparsecap_jax.runs.config import default_config

TESTS = pathlib.Path(__file__).resolve().parents[1]
WIDTH = 6
PHOTOS = store_files.random_photos({42: 3, 7: 2, 391895: 5}, WIDTH)
WORDS = captioner_runs.WORDS


@dataclasses.dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
        make: writes whole files into a folder.
        read: reads a folder of such files.
        errors: what it may raise.
        slower: how many times fewer mutations it gets than others.
    """

    make: Callable[[pathlib.Path], None]
    read: Callable[[pathlib.Path], object]
    errors: tuple[type[Exception], ...] = (DataError,)
    slower: int = 1


READERS: dict[str, Reader] = {}
CONFIG = default_config()


def reader(name, *, errors=(DataError,), slower=1, make=None):
    """Register the decorated function, which reads a folder, under a name."""

    def register(read):
        READERS[name] = Reader(make, read, errors, slower)
        return read

    return register
