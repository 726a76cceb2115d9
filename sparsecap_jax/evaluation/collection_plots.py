"""Plots of collected models, after the charts of the papers.

Each function writes one PNG where the models have what it shows, and returns whether it has.
"""

import collections
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsecap_jax.evaluation.collected import Collected
from sparsecap_jax.evaluation.plots import (
    drawable,
    error_bar_curves,
    line_style,
    panel_grid,
    shared_legend,
    table_column,
    training_curves,
)
from sparsecap_jax.evaluation.published import METHODS, published_results
from sparsecap_jax.files import read_csv, save_figure
from sparsecap_jax.pruning.similarity import mask_overlap
from sparsecap_jax.pruning.summary import GROUPS, group_of

_TARGET = "target sparsity"
_MOST_LINES = 12  # of a panel, where each has a name
_MOST_PANELS = 24
_MOST_TENSORS = 40


def common_results(runs: Sequence[Collected], score: str = "CIDEr") -> str | None:
    """Return the results, such as `test_beam_2`, that most runs have a score of; None for none.

    Charts show one kind of results. Of equally frequent ones, tests come before validation.
    """
    counts = collections.Counter(
        name for run in runs for name, scores in run.results.items() if score in scores
    )
    ranked = sorted(counts, key=lambda name: (-counts[name], not name.startswith("test"), name))
    return ranked[0] if ranked else None


def draw_quality(
    path: pathlib.Path, runs: Sequence[Collected], results: str, published: bool = False
) -> bool:
    """Draw CIDEr over the target sparsity, a panel for each architecture."""
    score = f"CIDEr ({results})"
    rows = [
        {key: run.figures[key] for key in ("model", "method")}
        | {_TARGET: round(run.target or 0.0, 3), score: run.results[results]["CIDEr"]}
        for run in runs
        if "CIDEr" in run.results.get(results, ())
    ]
    models = {row["model"] for row in rows if row["method"] != "dense"}
    rows = [row for row in rows if row["model"] in models]
    if not rows:
        return False
    behind = [{**row, score: row["CIDEr"]} for row in _published_curves(models) if published]
    columns = {"x": _TARGET, "y": score, "series": "method", "panel": "model"}
    note = published_note(runs, results) if behind else ""
    error_bar_curves(path, rows, **columns, baseline="dense", behind=behind, note=note)
    return True


def published_note(runs: Sequence[Collected], results: str) -> str:
    """Return what to know about published results next to those of runs: the data of both."""
    scored = [run.other_data for run in runs if "CIDEr" in run.results.get(results, ())]
    others = sorted({name for name in scored if name})
    note = "grey: published, of COCO's Karpathy test split"
    if not others:
        return note
    return f"{note}\nwhich runs on other data do not compare with: {', '.join(others)}"


def _published_curves(models: Iterable[str]) -> list[dict]:
    rows = [row for row in published_results() if row["source"] == METHODS]
    curves = []
    for row in (row for row in rows if row["model"] in models):
        name = " ".join(["COCO, published:", row["variant"], row["method"]]).replace("  ", " ")
        same = [one for one in rows if all(one[key] == row[key] for key in ("model", "variant"))]
        dense = {one["sparsity"] for one in same if one["sparsity"]}
        for target in dense if row["method"] == "dense" else [row["sparsity"]]:
            curve = {"model": row["model"], "method": name, _TARGET: target}
            curves.append({**curve, "CIDEr": row["CIDEr"]})
    return curves


def draw_bubbles(
    path: pathlib.Path, runs: Sequence[Collected], results: str, published: bool = False
) -> bool:
    """Draw CIDEr over the number of nonzero weights, areas in proportion to the files' bytes."""
    points = [
        {"bytes": None, **run.figures, "name": run.name, "CIDEr": run.results[results]["CIDEr"]}
        for run in runs
        if "CIDEr" in run.results.get(results, ()) and run.figures.get("nonzeros")
    ]
    if not points:
        return False
    behind = [row for row in published_results() if row["source"] != METHODS] if published else []
    largest = max(row["bytes"] or 1 for row in [*points, *behind])
    figure = Figure(figsize=(9, 6), layout="constrained")
    axis = figure.subplots()
    labels = []
    for row in behind:
        area = 1500 * (row["bytes"] or 0) / largest
        style: dict[str, Any] = {
            "marker": "o" if area else "x",
            "color": "0.8",
            "zorder": 1,
            "alpha": 0.7,
        }
        axis.scatter(row["nonzeros"], row["CIDEr"], max(area, 30), **style)
        labels.append((f"{row['model']}, {row['method']}", row, "0.5"))
    models = list(dict.fromkeys(row["model"] for row in points))
    for number, model in enumerate(models):
        some = [row for row in points if row["model"] == model]
        nonzeros, scores = ([row[key] for row in some] for key in ("nonzeros", "CIDEr"))
        areas = [max(1500 * (row["bytes"] or 0) / largest, 12) for row in some]
        style = {"color": f"C{number}", "alpha": 0.6, "lw": 0}
        axis.scatter(nonzeros, scores, areas, zorder=2, **style)
        axis.scatter([], [], 60, label=model, **style)
    if len(points) <= _MOST_PANELS:
        labels += [(_short(row["name"]), row, "0.1") for row in points]
    axis.set(xscale="log", xlabel="nonzero prunable weights", ylabel=f"CIDEr ({results})")
    title = ["area: bytes of the weights' file"]
    title += [published_note(runs, results)] if behind else []
    axis.set_title("\n".join(title), fontsize=10)
    axis.margins(x=0.25, y=0.15)
    axis.grid(alpha=0.3)
    axis.legend()
    _place_labels(axis, labels)
    save_figure(figure, path)
    return True


def _place_labels(axis: Axes, labels: Iterable[tuple[str, Mapping, str]]) -> None:
    """Write a name and a size next to each bubble, moved up until it covers no other."""
    height, letter = 11.0, 4.2  # points of a line, and of a letter, about
    taken: list[tuple[float, float, float]] = []
    for name, row, colour in sorted(labels, key=lambda label: label[1]["CIDEr"]):
        text = name + (f", {row['bytes'] / 1e6:.3g} MB" if row["bytes"] else "")
        place = (row["nonzeros"], row["CIDEr"])
        left, bottom = axis.transData.transform(place) * 72 / axis.figure.dpi
        width, up = letter * len(text), 4.0
        while any(
            abs(bottom + up - y) < height and left < x + w and x < left + width for x, y, w in taken
        ):
            up += 1.0
        taken.append((left, bottom + up, width))
        style: dict[str, Any] = {"fontsize": 7, "color": colour, "textcoords": "offset points"}
        arrow = {"arrowstyle": "-", "color": colour, "lw": 0.4} if up > height else None
        axis.annotate(text, place, xytext=(6, up), arrowprops=arrow, **style)


def draw_layerwise(path: pathlib.Path, runs: Sequence[Collected]) -> bool:
    """Draw the sparsity of each tensor, a panel for each architecture, a line for each run.

    Of architectures with many tensors, the mean of each part of a layer is drawn.
    """
    architectures: dict[tuple[str, ...], list[tuple[Collected, list[float]]]] = {}
    for run in runs:
        if run.tensors and run.figures["method"] != "dense":
            parts = _parts(run.tensors)
            architectures.setdefault(tuple(parts), []).append((run, [*parts.values()]))
    if not architectures:
        return False
    widths = [max(6.0, 0.22 * len(tensors)) for tensors in architectures]
    figure = Figure(figsize=(max(widths) + 2, 5.5 * len(architectures)), layout="constrained")
    axes = np.ravel(figure.subplots(len(architectures), 1, squeeze=False))
    for axis, (tensors, some) in zip(axes, architectures.items(), strict=True):
        for number, (run, values) in enumerate(some):
            style = {"marker": "osv^Dx"[number % 6], "ms": 3, "lw": 1, **line_style(number)}
            axis.plot(values, label=_short(run.name) if number < _MOST_LINES else None, **style)
        axis.set_xticks(range(len(tensors)), tensors, rotation=90, fontsize=7)
        axis.set(title=some[0][0].figures["model"], ylabel="sparsity", ylim=(-0.03, 1.03))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save_figure(figure, path)
    return True


def _parts(tensors: Sequence[Mapping]) -> dict[str, float]:
    """Return sparsities of tensors, or of the parts of layers where there are many tensors."""
    if len(tensors) <= _MOST_TENSORS:
        return {row["tensor"]: row["sparsity"] for row in tensors}
    totals: dict[str, list[float]] = {}
    for row in tensors:
        mark, depth = ("/", 2) if "/" in row["tensor"] else (".", 5)  # ours, and the reference's
        part = mark.join(row["tensor"].split(mark)[:depth])
        size, total = row.get("size", 1), totals.setdefault(part, [0.0, 0.0])
        total[0] += size * row["sparsity"]
        total[1] += size
    return {part: zeros / size for part, (zeros, size) in totals.items()}


def draw_curves(path: pathlib.Path, runs: Sequence[Collected]) -> bool:
    """Draw what runs logged over their steps, see `plots.training_curves`."""
    logged = [run for run in runs if {"train", "validation"} & {*run.curves}][:_MOST_LINES]
    if not logged:
        return False
    training_curves(path, {_short(run.name): run.directory for run in logged})
    return True


def draw_progression(path: pathlib.Path, runs: Sequence[Collected]) -> bool:
    """Draw the sparsity of tensors over the steps, a panel for each run.

    Where there are many tensors, the mean of each of `GROUPS` is drawn, weighted by their sizes.
    """
    shown = [run for run in runs if "sparsity" in run.curves][:_MOST_PANELS]
    curves = {run.name: tensor_curves(run) for run in shown}
    shown = [run for run in shown if curves[run.name]]
    if not shown:
        return False
    figure, axes = panel_grid(len(shown), min(3, len(shown)), (4.6, 3.8))
    for axis, run in zip(axes, shown, strict=True):
        for number, (name, (steps, values)) in enumerate(curves[run.name].items()):
            style: dict[str, Any] = {"lw": 1, "marker": ".", "ms": 3, **line_style(number)}
            axis.plot(steps, drawable(values), label=name, **style)
        for table in ("train", "validation"):
            steps, values = _logged(run, table, "sparsity")
            if len(steps):
                axis.plot(steps, drawable(values), color="0.1", lw=1.8, label="overall")
                break
        if run.target:
            axis.axhline(run.target, color="C3", ls="--", lw=1, label="target")
        axis.set(title=_short(run.name), xlabel="step", ylabel="sparsity", ylim=(-0.03, 1.03))
        axis.grid(alpha=0.3)
    shared_legend(figure)
    save_figure(figure, path)
    return True


def _logged(run: Collected, table: str, column: str) -> tuple[list[int], list[float]]:
    return table_column(run.directory / f"{table}.csv", column) if table in run.curves else ([], [])


def tensor_curves(run: Collected) -> dict[str, tuple[list[int], list[float]]]:
    """Return steps and sparsities of each tensor, or of groups, as a run logged them."""
    path = run.directory / "sparsity.csv"
    names = [name for name in next(iter(read_csv(path)), {}) if name and name != "step"]
    curves = {name: table_column(path, name) for name in names}
    if len(curves) <= _MOST_LINES:
        return curves
    sizes = {row["tensor"]: row.get("size", 1) for row in run.tensors}
    grouped = {}
    for group in GROUPS:
        some = [name for name in names if group_of(name) == group and curves[name][0]]
        if some and all(curves[name][0] == curves[some[0]][0] for name in some):
            weights = [sizes.get(name, 1) for name in some]
            mean = np.average([curves[name][1] for name in some], axis=0, weights=weights)
            grouped[f"{group} (mean)"] = (curves[some[0]][0], mean.tolist())
    return grouped


def draw_densities(path: pathlib.Path, runs: Sequence[Collected]) -> bool:
    """Draw the densities of the nonzero prunable weights of all runs."""
    shown = [(run, run.density) for run in runs if run.density is not None][:_MOST_LINES]
    if not shown:
        return False
    figure = Figure(figsize=(9, 5), layout="constrained")
    axis = figure.subplots()
    top = max(heights.max() for _, (_, heights) in shown)
    for number, (run, (places, heights)) in enumerate(shown):
        label = f"{_short(run.name)} ({run.figures['nonzeros']:,})"
        axis.plot(places, heights, label=label, lw=1, **line_style(number))
    axis.set(title="density of nonzero prunable weights", xlabel="weight", yscale="log")
    axis.set_ylim(1e-5 * top, 2 * top)
    axis.grid(alpha=0.3)
    shared_legend(figure)
    save_figure(figure, path)
    return True


def draw_similarity(path: pathlib.Path, runs: Sequence[Collected]) -> bool:
    """Draw overlaps of the masks of pruned runs of one architecture, and distances of layers."""
    matrices = []
    architectures: dict[tuple, list[Collected]] = {}
    for run in runs:
        if run.masks and run.figures["method"] != "dense":
            tensors = tuple((name, bits.shape) for name, bits in run.masks.items())
            architectures.setdefault(tensors, []).append(run)
    for some in architectures.values():
        some = some[:_MOST_PANELS]
        if len(some) > 1:
            names, title = [_short(run.name) for run in some], some[0].figures["model"]
            overlap = mask_overlap([run.masks for run in some])
            title += ": weights that both keep,\nof those that either keeps"
            matrices.append((title, overlap, names))
    for run in runs:
        for stack, distances in run.layers.items():
            names = [str(number) for number in range(len(distances))]
            title = f"{_short(run.name)}\ndistance of {stack} layers"
            matrices.append((title, distances, names))
    if not matrices:
        return False
    matrices = matrices[:_MOST_PANELS]
    figure, axes = panel_grid(len(matrices), min(3, len(matrices)), (5.0, 4.4))
    for axis, (title, matrix, names) in zip(axes, matrices, strict=True):
        _heatmap(figure, axis, title, matrix, names)
    save_figure(figure, path)
    return True


def _heatmap(
    figure: Figure, axis: Axes, title: str, matrix: np.ndarray, names: Sequence[str]
) -> None:
    """Draw a symmetric matrix, the scale that of its entries off the diagonal."""
    masked = np.ma.masked_array(matrix, np.eye(len(matrix), dtype=bool))
    image = axis.imshow(masked, cmap="viridis")
    for (row, column), value in np.ndenumerate(matrix):
        if len(matrix) <= 8 and row != column:
            style: dict[str, Any] = {
                "ha": "center",
                "va": "center",
                "fontsize": 7,
                "color": "white",
            }
            if value > (masked.min() + masked.max()) / 2:
                style["color"] = "black"
            axis.text(column, row, f"{value:.3g}", **style)
    axis.set_xticks(range(len(names)), names, rotation=90 if len(max(names)) > 2 else 0, fontsize=7)
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.set_title(title, fontsize=9)
    figure.colorbar(image, ax=axis, shrink=0.8)


def _short(name: str) -> str:
    return name if len(name) <= 40 else f"...{name[-37:]}"
