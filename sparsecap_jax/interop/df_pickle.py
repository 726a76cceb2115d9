"""Document-frequency pickles of self-critical training codes, read without executing them.

Their form is `{"ref_len": images, "document_frequency": defaultdict(float, {n-gram: count})}` with
tuples of words, or of word numbers as text; rare words are `UNK`, captions end in `<eos>` or `0`.
Source: `scripts/dataset/prepro_ngrams.py` of the reference.
"""

import io
import pathlib
import reprlib
from typing import Any

from sparsecap_jax.errors import DataError
from sparsecap_jax.files import read_bytes
from sparsecap_jax.scst.document_frequency import MAX_N, DocumentFrequency, from_ngrams
from sparsecap_jax.torch_files.pickles import load_restricted

_OPCODES = frozenset(
    """
    PROTO FRAME STOP MARK GLOBAL STACK_GLOBAL REDUCE MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET
    BININT BININT1 BININT2 LONG1 BINFLOAT SHORT_BINSTRING BINSTRING BINUNICODE SHORT_BINUNICODE
    EMPTY_DICT SETITEM SETITEMS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    """.split()  # noqa: SIM905
)


def _empty_dict(*arguments: Any) -> dict:
    if arguments != ("float",):
        raise ValueError(f"a defaultdict of {reprlib.repr(arguments)}; expected one of float")
    return {}


_GLOBALS = {
    ("collections", "defaultdict"): _empty_dict,
    ("builtins", "float"): "float",
    ("__builtin__", "float"): "float",
}


def load_df_pickle(path: str | pathlib.Path) -> DocumentFrequency:
    """Read `*-words.p` or `*-idxs.p`; the result says which, and which conventions it follows.

    Raises:
        DataError: missing, corrupt, of another form, or a pickle that asks for more than it needs.
    """
    try:
        file = io.BytesIO(read_bytes(path, "a document-frequency pickle"))
        content = load_restricted(file, _OPCODES, _GLOBALS, encoding="latin1")
        return _convert(content, pathlib.Path(path).name)
    except DataError:
        raise
    except Exception as error:  # whatever foreign bytes provoke
        raise DataError(f"{path}: not a document-frequency pickle: {error}") from error


def _convert(content: Any, name: str) -> DocumentFrequency:
    if type(content) is not dict or set(content) != {"ref_len", "document_frequency"}:
        raise ValueError("expected a dict of ref_len and document_frequency")
    images, counts = content["ref_len"], content["document_frequency"]
    if type(images) not in (int, float) or images < 1 or images != int(images):
        raise ValueError(f"ref_len is {reprlib.repr(images)}; expected the number of images")
    if type(counts) is not dict or not counts:
        raise ValueError("document_frequency is not a dict of n-grams")
    for ngram, count in counts.items():
        is_tuple = type(ngram) is tuple and 1 <= len(ngram) <= MAX_N
        if not is_tuple or any(type(word) is not str or "\n" in word for word in ngram):
            expected = f"expected a tuple of one to {MAX_N} words"
            raise ValueError(f"n-gram {reprlib.repr(ngram)}; {expected}")
        if type(count) not in (int, float) or not 0 <= count < float("inf"):
            raise ValueError(f"n-gram {reprlib.repr(ngram)} has the count {reprlib.repr(count)}")
    words = {ngram[0] for ngram in counts if len(ngram) == 1}
    tokens = "ids" if all(word.isdigit() for word in words) else "words"
    eos, unk = "0" if tokens == "ids" else "<eos>", "UNK"
    special = {"eos": eos if eos in words else "", "unk": unk if unk in words else ""}
    return from_ngrams(counts, int(images), **special, dataset=name, tokens=tokens)
