"""Tables of masks for any model: layers with their dead units, two masks, masks over training."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning.masks import check_binary, check_fit
from sparsecap_jax.pruning.paths import arrays_by_path, by_path, show
from sparsecap_jax.pruning.summary import ALL, PRUNABLE, summarize
from sparsecap_jax.types import PyTree


def dead_units(binary: PyTree) -> list[dict[str, Any]]:
    """Count the rows and columns that masks prune entirely; outside jit.

    Rows lie along the last axis but one, columns along the last: inputs and outputs of a kernel of
    Flax or Haiku, outputs and inputs of a weight of Equinox. With more dimensions a row is pruned
    if it is so everywhere, as an input channel of a convolution.

    Returns:
        Rows `{"tensor", "rows", "dead_rows", "columns", "dead_columns", "size", "saved"}` in sorted
        order of paths, then one over all tensors. `saved` weights go where a tensor loses its dead
        rows and columns; what other tensors lose with them is for `compact` to say.

    Raises:
        ConfigError: masks are not binary.
    """
    check_binary(binary)
    table: list[dict[str, Any]] = []
    for path, mask in by_path(binary).items():
        kept = np.atleast_2d(np.asarray(mask) != 0)
        planes = kept.reshape(-1, *kept.shape[-2:])
        live = [int(planes.any(axis=(0, axis)).sum()) for axis in (2, 1)]
        left = planes.shape[0] * math.prod(live)
        sizes = planes.shape[1:]
        table.append({"tensor": show(path), **_line(sizes, live, kept.size, kept.size - left)})
    total = {key: sum(row[key] for row in table) for key in _line((0, 0), (0, 0), 0, 0)}
    return [*table, {"tensor": ALL, **total}]


def _line(sizes: Sequence[int], live: Sequence[int], size: int, saved: int) -> dict[str, int]:
    (rows, columns), (live_rows, live_columns) = sizes, live
    dead = {"rows": rows, "dead_rows": rows - live_rows, "columns": columns}
    return {**dead, "dead_columns": columns - live_columns, "size": size, "saved": saved}


def layer_table(params: PyTree, binary: PyTree) -> str:
    """Return a Markdown table of all tensors: shape, size, nonzeros, sparsity, and dead units.

    Raises:
        ConfigError: masks do not fit.
    """
    dead = {row["tensor"]: row for row in dead_units(binary)}
    dead[PRUNABLE] = dead.pop(ALL)
    names = ("tensor", "shape", "size", "nonzeros", "sparsity", "dead rows", "dead columns")
    lines = [f"| {' | '.join(names)} |", "|---|---|" + "---:|" * 5]
    for row in summarize(params, binary):
        units = dead.get(row["tensor"], {})
        cells = [row["tensor"], row["shape"], f"{row['size']:,}", f"{row['nonzeros']:,}"]
        cells += [f"{row['sparsity']:.4f}"]
        cells += [f"{units[key]:,}" if units else "" for key in ("dead_rows", "dead_columns")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def overlap(first: PyTree, second: PyTree) -> list[dict[str, Any]]:
    """Compare two masks of one model; outside jit.

    Returns:
        Rows `{"tensor", "first", "second", "both", "either", "shared", "overlap", "by_chance"}`,
        then one over all tensors. The first four count weights that masks keep. `shared` is both /
        first (jaxpruner's `summarize_intersection`), `overlap` is both / either, and `by_chance`
        the overlap that independent masks of the same densities have on average.

    Raises:
        ConfigError: masks are not binary, or differ in paths or shapes.
    """
    check_binary(first)
    check_binary(second)
    check_fit(first, second)
    check_fit(second, first)
    others, table = by_path(second), []
    for path, mask in by_path(first).items():
        one, other = np.asarray(mask) != 0, np.asarray(others[path]) != 0
        pairs = (one, other, one & other, one | other)
        counts = dict(zip(_COUNTS, (int(bits.sum()) for bits in pairs), strict=True))
        table.append({"tensor": show(path), "size": one.size, **counts})
    total = {key: sum(row[key] for row in table) for key in ("size", *_COUNTS)}
    return [_with_shares(row) for row in (*table, {"tensor": ALL, **total})]


_COUNTS = ("first", "second", "both", "either")


def _with_shares(row: dict[str, Any]) -> dict[str, Any]:
    size = row.pop("size") or 1
    one, other = row["first"] / size, row["second"] / size
    return {
        **row,
        "shared": row["both"] / max(row["first"], 1),
        "overlap": row["both"] / max(row["either"], 1),
        "by_chance": one * other / ((one + other - one * other) or 1.0),
    }


@dataclasses.dataclass
class SparsityHistory:
    """Sparsity of each tensor over training, of any model.

        history = SparsityHistory()
        history.add(step, pruner.binarize(state.prune.masks))  # now and then
        history.draw(path)

    Attributes:
        rows: `{"step", "tensor", "size", "nonzeros", "sparsity"}`, a row for each tensor and one
            over all tensors at each step; a table for any CSV writer.
    """

    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def add(self, step: Any, binary: PyTree) -> None:
        """Count the weights that binary masks keep after `step`; outside jit.

        Raises:
            ConfigError: masks are not binary.
        """
        check_binary(binary)
        masks = arrays_by_path(binary)
        counts = {show(p): (mask.size, int(np.count_nonzero(mask))) for p, mask in masks.items()}
        totals = [sum(column) for column in zip(*counts.values(), strict=True)] or [0, 0]
        for name, (size, kept) in [*counts.items(), (ALL, totals)]:
            row = {"step": int(step), "tensor": name, "size": size, "nonzeros": kept}
            self.rows.append({**row, "sparsity": 1.0 - kept / (size or 1)})

    def draw(self, path: Any) -> None:
        """Draw a line for each tensor, and a bold one for all of them, into a picture file.

        Raises:
            ConfigError: nothing was added.
        """
        from matplotlib.figure import Figure

        if not self.rows:
            raise ConfigError("SparsityHistory: nothing to draw; add(step, masks) first")
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        for name in dict.fromkeys(row["tensor"] for row in self.rows):
            points = [(r["step"], r["sparsity"]) for r in self.rows if r["tensor"] == name]
            bold = {"color": "black", "lw": 2.5} if name == ALL else {"lw": 1}
            axes.plot(*zip(*points, strict=True), label=name, **bold)
        axes.set(xlabel="step", ylabel="sparsity", ylim=(-0.02, 1.02))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.savefig(path, dpi=120)
