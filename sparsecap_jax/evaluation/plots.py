"""Pictures of runs: curves of training, error bars."""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsecap_jax.files import foreign_errors, read_csv, save_figure

_MOST_IN_PANEL = 4  # runs named within each panel
_MOST_IN_COLUMN = 24  # of a legend
_LARGEST = 1e30

_CURVES = (
    ("train", "caption_loss", "training loss"),
    ("validation", "CIDEr", "validation CIDEr (greedy)"),
    ("train", "sparsity", "sparsity of prunable weights"),
    ("train", "reward", "mean reward of the samples"),
    ("train", "baseline", "mean baseline"),
    ("train", "advantage_std", "spread of the advantages"),
    ("train", "length", "tokens of a sample"),
    ("train", "entropy", "-log p per sampled token"),
    ("train", "repeated_4grams", "share of repeated 4-grams"),
)


def logged_curves(
    tables: Mapping[tuple[str, str], pathlib.Path], runs: Iterable[str]
) -> list[tuple[str, str, str]]:
    """Return the curves that any of the named runs has logged: table, column and title.

    `tables` are CSV files by run and table ("train" or "validation"); a run may lack one.
    """
    runs = list(runs)
    return [
        (table, column, title)
        for table, column, title in _CURVES
        if any(table_column(tables.get((name, table)), column)[0] for name in runs)
    ]


def training_curves(path: str | pathlib.Path, runs: Mapping[str, str | pathlib.Path]) -> None:
    """Draw the figures that runs logged over their steps.

    These are training loss, validation CIDEr and sparsity; of self-critical training also reward,
    baseline, spread of the advantages, and length, entropy and repetition of the samples. Figures
    that no run logged are left out. `runs` are run directories by the name to show them under.
    """
    tables = {
        (name, table): pathlib.Path(workdir) / f"{table}.csv"
        for name, workdir in runs.items()
        for table in ("train", "validation")
        if pathlib.Path(workdir, f"{table}.csv").exists()
    }
    curves = logged_curves(tables, runs)
    figure, axes = panel_grid(len(curves), max(1, min(3, len(curves))), (4.4, 3.8))
    for axis, (table, column, title) in zip(axes, curves, strict=True):
        for number, name in enumerate(runs):
            steps, values = table_column(tables.get((name, table)), column)
            if len(steps):
                marker = "o" if table == "validation" else None
                axis.plot(steps, drawable(values), label=name, marker=marker, **line_style(number))
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        if len(runs) <= _MOST_IN_PANEL and axis.get_legend_handles_labels()[0]:
            axis.legend()
    if len(runs) > _MOST_IN_PANEL:
        shared_legend(figure)
    save_figure(figure, path)


def line_style(number: int) -> dict[str, Any]:
    """Return colour and dashes of the line of that number; the first ten differ in colour."""
    return {"color": f"C{number % 10}", "ls": ("-", "--", ":", "-.")[number // 10 % 4]}


def shared_legend(figure: Figure) -> None:
    """Draw one legend for all panels, to their right."""
    entries: dict[str, Artist] = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    columns = 1 + len(entries) // _MOST_IN_COLUMN
    place: dict[str, Any] = {"loc": "outside right upper", "ncols": columns}
    figure.legend(list(entries.values()), list(entries), fontsize=8, **place)


def error_bar_curves(
    path: str | pathlib.Path,
    rows: Sequence[Mapping],
    *,
    x: str,
    y: str,
    series: str,
    panel: str,
    baseline: str = "",
    behind: Sequence[Mapping] = (),
    note: str = "",
) -> None:
    """Draw means over seeds with error bars of one standard deviation, in panels side by side.

    Columns of `rows`, results such as those of a sweep, are named by `panel` and `series`, which
    split them into curves, and by `x`, whose values are evenly spaced, and `y`. Rows that agree in
    all but y are seeds. The series `baseline` is drawn as a horizontal line, whatever its x. Rows
    of `behind` have the same columns; their curves are drawn in grey behind those of their panel.
    `note` stands below all panels.
    """
    panels = list(dict.fromkeys(row[panel] for row in rows))
    names = list(dict.fromkeys(row[series] for row in rows if row[series] != baseline))
    places = sorted({row[x] for row in [*rows, *behind] if row[series] != baseline})
    figure = Figure(figsize=(6.5 * len(panels), 4.8), layout="constrained")
    if note:
        figure.supxlabel(note, fontsize=9)
    for axis, title in zip(np.ravel(figure.subplots(1, len(panels))), panels, strict=True):
        shown = [row for row in rows if row[panel] == title]
        flat = [row[y] for row in shown if row[series] == baseline]
        if flat:
            axis.axhline(np.mean(flat), color="0.4", ls="--", lw=1, label=baseline)
        for number, name in enumerate(names):
            curve = [row for row in shown if row[series] == name]
            seeds = [[row[y] for row in curve if row[x] == place] for place in places]
            filled = [place for place, values in enumerate(seeds) if values]
            # Curves are shifted a little against each other, so that their bars do not overlap.
            shifted = np.array(filled) + 0.03 * (number - (len(names) - 1) / 2)
            means, spreads = ([f(seeds[place]) for place in filled] for f in (np.mean, np.std))
            line = {"marker": "osv^Dx"[number % 6], "ls": "-" if number < 10 else ":"}
            axis.errorbar(shifted, means, spreads, capsize=2, ms=4, lw=1.2, label=name, **line)
        for number, name in enumerate(dict.fromkeys(row[series] for row in behind)):
            curve = [row for row in behind if row[panel] == title and row[series] == name]
            points = sorted((places.index(row[x]), row[y]) for row in curve)
            style = {"color": "0.6", "marker": "osv^Dx+*ph"[number % 10], "lw": 0.8, "ms": 3}
            if points:
                axis.plot(*zip(*points, strict=True), label=name, zorder=1, **style)
        axis.set(title=title, xlabel=x, ylabel=y)
        axis.set_xticks(range(len(places)), [str(place) for place in places])
        axis.set_xlim(-0.5, len(places) - 0.5)
        axis.grid(alpha=0.3)
    shared_legend(figure)
    save_figure(figure, path)


def table_column(path: pathlib.Path | None, column: str) -> tuple[list[int], list[float]]:
    """Return steps and values of a column of a run's CSV log, where it is filled; None has none."""
    if path is None:
        return [], []
    rows = [row for row in read_csv(path) if row.get(column)]
    with foreign_errors(f"{path}: a damaged row"):
        steps, values = [int(row["step"]) for row in rows], [float(row[column]) for row in rows]
        if any(abs(step) >= 2**63 for step in steps):
            raise ValueError("a step of too many digits")
    return steps, values


def drawable(values: Sequence[float]) -> Float[np.ndarray, " N"]:
    """Return values with NaN, which is not drawn, for those that no axis can hold."""
    array = np.asarray(values, np.float64)
    return np.where(np.abs(array) < _LARGEST, array, np.nan)


def panel_grid(count: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """Lay out panels of `size` inches row by row, empty ones switched off."""
    rows = max(1, -(-count // columns))
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    axes = np.ravel(figure.subplots(rows, columns))
    for axis in axes[count:]:
        axis.axis("off")
    return figure, axes[:count].tolist()
