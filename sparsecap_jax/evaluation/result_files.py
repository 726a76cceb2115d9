"""Results of an evaluation, read back: scores of each image, and attention word by word."""

import math
import os
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from sparsecap_jax.data.records import normalize_id
from sparsecap_jax.errors import DataError
from sparsecap_jax.evaluation.caption_files import load_captions, read_entries
from sparsecap_jax.evaluation.metrics import ALL_METRICS
from sparsecap_jax.files import read_csv, read_settings

PER_IMAGE = "scores_per_image.csv"
"""Name of the table that `evaluation.metrics.write_scores` writes for a run."""


def load_image_scores(
    path: str | os.PathLike,
) -> tuple[dict[Hashable, str], dict[Hashable, dict[str, float | None]]]:
    """Read captions and scores of each image: the table that `metrics.write_scores` writes.

    Returns:
        Captions by image id, and scores by image id and metric; None where a cell is empty.

    Raises:
        DataError: the table is missing or damaged; the message names row and column.
    """
    captions: dict[Hashable, str] = {}
    scores: dict[Hashable, dict[str, float | None]] = {}
    for number, row in enumerate(read_csv(path), 2):
        where = f"{path}: row {number}"
        if not row.get("image_id") or row.get("caption") is None or None in row:
            found = f"found columns {[*row]!r:.80}"
            raise DataError(f"{where}: expected image_id, caption and scores, {found}")
        image = normalize_id(row["image_id"])
        if image in captions:
            raise DataError(f"{where}: image {image!r} is there twice, expected once")
        captions[image] = row["caption"]
        cells = {name: row[name] for name in ALL_METRICS if name in row}
        scores[image] = {name: _score(cell, f"{where}: {name}") for name, cell in cells.items()}
    return captions, scores


def _score(cell: str | None, where: str) -> float | None:
    if not cell:
        return None
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: found {cell!r:.80}, expected a number")
    return value


def load_corpus_scores(path: str | os.PathLike) -> dict[str, float | list[float]]:
    """Read the figures of `scores.json` that are shown: metrics, intervals, sparsity, sizes.

    Raises:
        DataError: the file is missing or broken.
    """
    content = read_settings(path, "scores")
    names = ("sparsity", "nonzeros", "bytes", *ALL_METRICS)
    figures: dict[str, Any] = {name: content[name] for name in names if _is_number(content, name)}
    for name in (f"{metric}_95%" for metric in ALL_METRICS):
        ends = content.get(name)
        if isinstance(ends, list) and len(ends) == 2 and all(_is_number(ends, n) for n in (0, 1)):
            figures[name] = ends
    return figures


def _is_number(values: Mapping | Sequence, key: Any) -> bool:
    value: Any = values.get(key) if isinstance(values, Mapping) else values[key]
    return type(value) in (int, float) and -1e300 < value < 1e300


def load_attention(path: str | os.PathLike) -> dict[Hashable, list[list[float]]]:
    """Read the weights of the regions for each word, of captions that have them.

    Args:
        path: captions of `sparsecap evaluate --attention` or `sparsecap caption --attention`; see
            `caption_files.load_captions`. Other files have none.

    Returns:
        `[W][R]` by image id: a row for each word of `caption.split()`, with numbers from 0 to 1.

    Raises:
        DataError: the weights of an image do not fit its caption, or are no numbers.
    """
    captions = load_captions(path)
    entries, places = read_entries(path)
    attention: dict[Hashable, list[list[float]]] = {}
    for entry, place in zip(entries if isinstance(entries, list) else (), places, strict=False):
        rows = entry.get("attention")
        if rows is None:
            continue
        where = f"{place}.attention"
        image = normalize_id(entry["image_id"])
        words = len(captions[image].split())
        if not isinstance(rows, list) or len(rows) != words:
            raise DataError(f"{where}: found {rows!r:.80}, expected {words} rows, one a word")
        for row in rows:
            numbers = isinstance(row, list) and len(row) == len(rows[0])
            if not numbers or not all(type(w) in (int, float) and 0 <= w <= 1.001 for w in row):
                raise DataError(f"{where}: found {row!r:.80}, expected weights from 0 to 1")
        attention[image] = rows
    return attention
