"""Document-frequency pickles of self-critical training codes, read without executing them.

Their form is `{"ref_len": images, "document_frequency": {n-gram: count}}`, a dict of any kind, with
tuples of words, or of word numbers as text; rare words are `UNK`, captions end in `<eos>` or `0`.
Numbers may be numpy's, words bytes or text of Python 2, UTF-8 or Latin-1, and `ref_len` the
logarithm of the number of images, where no other reading is possible.
Source: `scripts/dataset/prepro_ngrams.py` of the reference.
"""

import io
import math
import pathlib
import re
import reprlib
from typing import Any

import numpy as np

from sparsecap_jax.errors import DataError
from sparsecap_jax.files import read_bytes
from sparsecap_jax.scst.document_frequency import MAX_N, DocumentFrequency, from_ngrams
from sparsecap_jax.torch_files.pickles import Inert, encoded, load_restricted

_OPCODES = frozenset(
    """
    PROTO FRAME STOP MARK GLOBAL STACK_GLOBAL REDUCE MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET
    BININT BININT1 BININT2 LONG1 BINFLOAT SHORT_BINSTRING BINSTRING BINUNICODE SHORT_BINUNICODE
    EMPTY_DICT SETITEM SETITEMS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    DICT GET PUT INT LONG FLOAT STRING UNICODE
    BUILD NONE NEWTRUE NEWFALSE SHORT_BINBYTES BINBYTES
    """.split()  # noqa: SIM905
)


_ERRORS = "surrogateescape"  # byte strings of Python 2 keep their bytes
_FACTORIES = ("float", "int", "long")
_NUMBERS = re.compile(r"f[248]|[iu][1248]")


def _empty_dict(*arguments: Any) -> dict:
    if arguments not in ((), *((name,) for name in _FACTORIES)):
        raise ValueError(f"a defaultdict of {reprlib.repr(arguments)}; expected one of numbers")
    return {}


def _counter(counts: Any) -> dict:
    if type(counts) is not dict:
        raise ValueError("a Counter of anything but a dict")
    return counts


class _Dtype:
    """A dtype of numbers, as numpy's pickles describe it."""

    __slots__ = ("name",)

    def __init__(self, name: Any, *_: Any):
        if type(name) is not str or not _NUMBERS.fullmatch(name):
            raise ValueError(f"a dtype {reprlib.repr(name)}")
        self.name = name

    def __setstate__(self, state: Any):
        if type(state) is not tuple or state[1] not in ("<", ">", "|"):
            raise ValueError(f"a dtype with the state {reprlib.repr(state)}")
        self.name = state[1] + self.name[-2:]


def _scalar(dtype: Any, content: Any) -> int | float:
    if type(content) is str:  # a byte string of Python 2
        content = content.encode(errors=_ERRORS)
    if type(dtype) is not _Dtype or type(content) is not bytes:
        raise ValueError("a number of numpy without its type or bytes")
    (number,) = np.frombuffer(content, dtype.name).tolist()
    return number


_GLOBALS = {
    ("collections", "defaultdict"): Inert(_empty_dict),
    ("collections", "OrderedDict"): Inert(_empty_dict),
    ("collections", "Counter"): Inert(_counter),
    **{(module, n): n for module in ("builtins", "__builtin__") for n in _FACTORIES},
    **{(f"numpy.{core}.multiarray", "scalar"): Inert(_scalar) for core in ("core", "_core")},
    ("numpy", "dtype"): Inert(_Dtype),
    ("_codecs", "encode"): Inert(encoded),
}


def load_df_pickle(path: str | pathlib.Path) -> DocumentFrequency:
    """Read `*-words.p` or `*-idxs.p`; the result says which, and which conventions it follows.

    Raises:
        DataError: missing, corrupt, of another form, or a pickle that asks for more than it needs.
    """
    try:
        file = io.BytesIO(read_bytes(path, "a document-frequency pickle"))
        content = load_restricted(file, _OPCODES, _GLOBALS, errors=_ERRORS)
        return _convert(content, pathlib.Path(path).name)
    except DataError:
        raise
    except Exception as error:  # whatever foreign bytes provoke
        reason = " ".join(str(error).split())  # names in a pickle may hold line breaks
        raise DataError(f"{path}: not a document-frequency pickle: {reason}") from error


def _convert(content: Any, name: str) -> DocumentFrequency:
    if type(content) is not dict or set(content) != {"ref_len", "document_frequency"}:
        raise ValueError("expected a dict of ref_len and document_frequency")
    images, counts = content["ref_len"], content["document_frequency"]
    if type(counts) is not dict or not counts:
        raise ValueError("document_frequency is not a dict of n-grams")
    images = _number_of_images(images)
    for ngram, count in counts.items():
        is_tuple = type(ngram) is tuple and 1 <= len(ngram) <= MAX_N
        if not is_tuple or any(type(w) not in (str, bytes) or "\n" in _text(w) for w in ngram):
            expected = f"expected a tuple of one to {MAX_N} words"
            raise ValueError(f"n-gram {reprlib.repr(ngram)}; {expected}")
        if type(count) not in (int, float) or not 0 <= count < float("inf"):
            raise ValueError(f"n-gram {reprlib.repr(ngram)} has the count {reprlib.repr(count)}")
        if count > images:
            more = f"the count {count:g}, but ref_len stands for {images} images"
            raise ValueError(f"n-gram {reprlib.repr(ngram)} has {more}")
    counts = {tuple(map(_text, ngram)): float(count) for ngram, count in counts.items()}
    words = {ngram[0] for ngram in counts if len(ngram) == 1}
    tokens = "ids" if all(word.isdigit() for word in words) else "words"
    eos, unk = "0" if tokens == "ids" else "<eos>", "UNK"
    special = {"eos": eos if eos in words else "", "unk": unk if unk in words else ""}
    return from_ngrams(counts, images, **special, dataset=name, tokens=tokens)


def _number_of_images(ref_len: Any) -> int:
    """Return `ref_len`, or the whole number of which it is the logarithm to the last digits."""
    if type(ref_len) in (int, float) and 0 < ref_len < 2**53:
        if ref_len == int(ref_len):
            return int(ref_len)
        images = round(math.exp(min(ref_len, 40.0)))
        if images > 1 and abs(ref_len - math.log(images)) < 1e-13:
            return images
    expected = "the number of images, or its logarithm"
    raise ValueError(f"ref_len is {reprlib.repr(ref_len)}; expected {expected}")


def _text(word: str | bytes) -> str:
    """Return a word; one that is not UTF-8 was Latin-1."""
    content = word if isinstance(word, bytes) else word.encode(errors=_ERRORS)
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content.decode("latin1")
