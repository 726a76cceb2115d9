"""Tables of a pruned model's sparsity, by tensor and overall."""

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from sparsecap_jax.pruning.masks import check_fit
from sparsecap_jax.pruning.paths import arrays_by_path, by_path, is_float, select, show
from sparsecap_jax.types import PyTree

logger = logging.getLogger(__name__)

NEARLY_EMPTY = 0.999
PRUNABLE, ALL = "(prunable)", "(all)"
GROUPS = ("embedding", "encoder", "decoder", "output")
_GROUPS = (
    ("embedding", re.compile(r"embed|tgt_embed")),
    ("output", re.compile(r"logits?(_\d+)?|generator")),
    ("encoder", re.compile(r"encoder.*|(src|region|fc|att)_embed|ctx2att|keys|values|init_state")),
)


def summarize(params: PyTree, binary: PyTree) -> list[dict[str, Any]]:
    """Count the kept weights of every tensor; outside jit.

    A tensor that a model uses in several places is one leaf and counts once; so does an array
    without masks that several paths of `params` share. Counters and random keys are no weights.

    Returns:
        Rows `{"tensor": "a/b/kernel", "shape": "4x8", "prunable", "size", "nonzeros",
        "sparsity"}` in sorted order of paths, then a row `(prunable)` over all masks and a row
        `(all)` over all weights. Weights without a mask count as kept.

    Raises:
        ConfigError: masks do not fit.
    """
    check_fit(binary, params)
    masks = by_path(binary)
    rows: list[dict[str, Any]] = []
    seen = set()
    for path, leaf in arrays_by_path(params).items():
        if path not in masks and (id(leaf) in seen or not is_float(leaf)):
            continue
        seen.add(id(leaf))
        size = int(np.prod(leaf.shape))
        kept = int(np.count_nonzero(np.asarray(masks[path]))) if path in masks else size
        row = {"tensor": show(path), "shape": "x".join(map(str, leaf.shape))}
        rows.append({**row, "prunable": path in masks, "size": size, "nonzeros": kept})
    pruned = [row for row in rows if row["prunable"]]
    for name, group in ((PRUNABLE, pruned), (ALL, list(rows))):
        counts = {key: sum(row[key] for row in group) for key in ("size", "nonzeros")}
        rows.append({"tensor": name, "shape": "", "prunable": name == PRUNABLE, **counts})
    return [row | {"sparsity": 1.0 - row["nonzeros"] / (row["size"] or 1)} for row in rows]


def weight_counts(params: PyTree, masks: PyTree | None = None) -> dict[str, float | int]:
    """Return the share of zeros among the prunable weights, `sparsity`, and the counts behind it.

    Prunable are the matrices of linear, embedding, recurrent and attention layers: no biases, no
    norms. They are `prunable` weights, of which `nonzeros` are not 0.

    Args:
        params: the weights.
        masks: their binary masks. Where masks keep weights that are 0, as rounding to int8 makes
            some, `kept` is the number of weights that they keep.
    """
    leaves, known = by_path(params), by_path(masks or {})
    weights = {path: np.asarray(leaves[path]) for path in select(params)}
    nonzeros = {path: int(np.count_nonzero(weight)) for path, weight in weights.items()}
    kept = sum(int(np.count_nonzero(known[p])) if p in known else n for p, n in nonzeros.items())
    total, size = sum(nonzeros.values()), sum(weight.size for weight in weights.values())
    counts = {"sparsity": 1.0 - total / (size or 1), "nonzeros": total, "prunable": size}
    return counts if kept == total else {**counts, "kept": kept}


def by_module(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Add up `parameters`, `nonzeros` and `sparsity` of the rows of `summarize` by module.

    Modules are named as in `tensor`, `decoder` before its parts `decoder/layer_0`; the whole model
    comes first, as `(all)`. A tensor of no module counts there alone.
    """
    totals: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["tensor"] not in (PRUNABLE, ALL):
            parts = row["tensor"].split("/")[:-1]
            for name in (ALL, *("/".join(parts[: n + 1]) for n in range(len(parts)))):
                total = totals.setdefault(name, {"parameters": 0, "nonzeros": 0})
                total["parameters"] += row["size"]
                total["nonzeros"] += row["nonzeros"]
    return {
        name: {**total, "sparsity": 1.0 - total["nonzeros"] / (total["parameters"] or 1)}
        for name, total in totals.items()
    }


def group_of(tensor: str) -> str:
    """Return the part of a captioner, one of `GROUPS`, that a tensor belongs to.

    The embedding of words, the output over words, the encoder (what runs once an image), and the
    decoder: everything else. Names are paths, or those of the PyTorch reference.
    """
    parts = [part for part in re.split(r"[/.]", tensor) if part not in ("model", "core")]
    top = parts[0] if parts else ""
    return next((group for group, pattern in _GROUPS if pattern.fullmatch(top)), "decoder")


def by_group(rows: Iterable[Mapping[str, Any]], key: str) -> dict[str, int]:
    """Add up a column of `summarize`'s rows, such as "nonzeros", over each of `GROUPS`."""
    totals = dict.fromkeys(GROUPS, 0)
    for row in rows:
        if row["tensor"] not in (PRUNABLE, ALL):
            totals[group_of(row["tensor"])] += row[key]
    return totals


def warn_nearly_empty(rows: list[dict[str, Any]]) -> list[str]:
    """Log a warning for each tensor of `summarize` over 99.9 % sparse, and return their names."""
    names = []
    for row in rows:
        if row["prunable"] and row["tensor"] != PRUNABLE and row["sparsity"] > NEARLY_EMPTY:
            names.append(row["tensor"])
            logger.warning(
                "%s is %.3f%% sparse: %d of %d weights are left",
                row["tensor"], 100 * row["sparsity"], row["nonzeros"], row["size"],
            )  # fmt: skip
    return names
