"""The file of a captioner for a web page: pruned weights, words and settings, deflated.

Inflated it has the size of its header, uint32, little-endian as all numbers; the header, JSON in
UTF-8; the gaps of all tensors; and the values of all tensors, first their first bytes, then their
second ones, and so on. A tensor is a matrix, one row for each output (for each word of an
embedding), taken row by row. A gap byte is so many zeros and a weight behind them; 255 is 255 zeros
and none. A tensor of which more than half is kept has no gaps, and all of its values.
`page/matrices.js` reads it.
"""

import dataclasses
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from sparsecap_jax.captioning.image_options import decode_options
from sparsecap_jax.captioning.search import SearchOptions
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.exporting.manifest import search_entry, tokenizer_entry
from sparsecap_jax.runs.finished import FinishedRun, present_weights
from sparsecap_jax.runs.weights import load_weights
from sparsecap_jax.tokenizers import Tokenizer
from sparsecap_jax.trees import flatten

VERSION = 1
_LONGEST_GAP = 255
_DENSE = 0.5
# Fields of models that training alone reads.
_TRAINING = ("dropout", "source_dropout", "attention_dropout", "compute_dtype", "remat")


class WebCaptioner(NamedTuple):
    """A captioner for a web page.

    Attributes:
        content: its file.
        tensors: for each pruned tensor `{"name", "size", "kept"}`.
    """

    content: bytes
    tensors: list[dict[str, Any]]


def pack_captioner(run: FinishedRun) -> WebCaptioner:
    """Return a captioner as the page reads it; no weight changes.

    Raises:
        ConfigError: a search that the page does not have.
        CheckpointError: the weights are gone or damaged.
    """
    options = _search_options(run)
    run.check_unchanged()
    loaded = load_weights(present_weights(run.directory))
    params, masks = (flatten(loaded[part]) for part in ("params", "masks"))
    matrices = {name: _matrix(name, leaf) for name, leaf in params.items()}
    header = {
        "version": VERSION,
        "model": _model_fields(run),
        "search": options,
        "tokenizer": words_entry(run.tokenizer),
    }
    tensors = [
        {"name": name, "size": int(mask.size), "kept": int(np.count_nonzero(mask))}
        for name, mask in masks.items()
    ]
    return WebCaptioner(zlib.compress(_coded(header, matrices), 9), tensors)


def _search_options(run: FinishedRun) -> dict[str, Any]:
    search = SearchOptions(**run.search)
    if search.search not in ("greedy", "beam"):
        raise ConfigError(f"search option search: {search.search!r}; a page has greedy and beam")
    for name in ("prefix", "required", "consensus"):
        if getattr(search, name):
            option = f"search option {name}: found {getattr(search, name)!r:.80}"
            raise ConfigError(f"{option}; expected none, a page has no such search")
    return search_entry(decode_options(search, run.tokenizer, run.config.max_seq_length))


def _model_fields(run: FinishedRun) -> dict[str, Any]:
    model = run.model
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    fields = {name: value for name, value in fields.items() if name not in _TRAINING}
    if hasattr(model, "order"):
        fields |= {f"{side}_order": model.order(side) for side in ("encoder", "decoder")}
    return {"name": run.config.model.name, **fields}


def words_entry(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return `tokenizer_entry` with blanks in place of U+2581, which deflates to more bytes."""
    entry = tokenizer_entry(tokenizer)
    return {**entry, "pieces": [piece.replace("\u2581", " ") for piece in entry["pieces"]]}


def _matrix(name: str, leaf: Float[np.ndarray, "..."]) -> Float[np.ndarray, "O I"]:
    """Return a tensor with one row for each output, or each word; a vector is one column."""
    if leaf.ndim != 2 or name.endswith("embedding"):
        return leaf.reshape(len(leaf), -1)
    return leaf.T


def _coded(header: Mapping[str, Any], matrices: Mapping[str, np.ndarray]) -> bytes:
    tensors, gaps, values = [], [], []
    for name, matrix in matrices.items():
        flat = np.ascontiguousarray(matrix).ravel()
        places = np.flatnonzero(flat)
        entry = {"name": name, "rows": matrix.shape[0], "columns": matrix.shape[1]}
        if len(places) > _DENSE * flat.size:
            tensors.append({**entry, "kept": None, "gaps": 0})
            values.append(flat)
            continue
        coded = _gaps(places)
        tensors.append({**entry, "kept": len(places), "gaps": len(coded)})
        gaps.append(coded)
        values.append(flat[places])
    joined, form = _smallest(values)
    planes = np.ascontiguousarray(joined.view(np.uint8).reshape(len(joined), -1).T)
    header = {**header, "form": form, "tensors": tensors}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    return b"".join([len(text).to_bytes(4, "little"), text, *gaps, planes.tobytes()])


def _gaps(places: np.ndarray) -> bytes:
    skipped, gap = np.divmod(np.diff(places, prepend=-1) - 1, _LONGEST_GAP)
    symbols = np.full(len(gap) + int(skipped.sum()), _LONGEST_GAP, np.uint8)
    symbols[np.cumsum(skipped + 1) - 1] = gap
    return symbols.tobytes()


def _smallest(values: Sequence[np.ndarray]) -> tuple[np.ndarray, str]:
    """Return all values as float16 where that changes none of them, else as float32."""
    joined = np.concatenate(values)
    with np.errstate(over="ignore"):
        half = joined.astype("<f2")
    if np.array_equal(half.astype(np.float32), joined):
        return half, "float16"
    return joined.astype("<f4"), "float32"
