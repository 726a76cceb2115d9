"""Pictures of runs: captions along with their scenes, curves of training, error bars."""

import pathlib
import textwrap
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sparsecap_jax.data.datasets import Dataset
from sparsecap_jax.data.karpathy import Record
from sparsecap_jax.files import foreign_errors, read_csv, write_atomically
from sparsecap_jax.photos.images import open_photo


def caption_grid(
    path: str | pathlib.Path,
    records: Sequence[Record],
    dataset: Dataset,
    captions: Mapping[str, Mapping],
    *,
    columns: int = 3,
) -> None:
    """Draw pictures with their region boxes, a reference and the generated captions, as PNG.

    `captions` are texts by image id, for each model by its name.

    Raises:
        DataError: a picture is missing.
    """
    figure, axes = _panels(len(records), columns, (4.4, 4.5))
    for axis, record in zip(axes, records, strict=True):
        picture = open_photo(dataset.images / record.filename)
        axis.imshow(picture)
        boxes, size = dataset.store[record.image_id].boxes, np.array(picture.size)
        style = {"fill": False, "lw": 0.7, "edgecolor": "white", "alpha": 0.8}
        for box in () if boxes is None else boxes:
            extent = (box[2:] - box[:2]) * size
            axis.add_patch(Rectangle(box[:2] * size - 0.5, *extent, **style))
        lines = [f"reference: {record.raw[0]}"]
        lines += [f"{name}: {texts[record.image_id]}" for name, texts in captions.items()]
        wrapped = ["\n".join(textwrap.wrap(line, 52)) for line in lines]
        axis.set_title("\n".join(wrapped), fontsize=9, loc="left")
        axis.axis("off")
    save_figure(figure, path)


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

    `tables` are CSV files by run and table ("train" or "validation").
    """
    runs = list(runs)
    return [
        (table, column, title)
        for table, column, title in _CURVES
        if any(table_column(tables[name, table], column)[0] for name in runs)
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
    }
    curves = logged_curves(tables, runs)
    figure, axes = _panels(len(curves), max(1, min(3, len(curves))), (4.4, 3.8))
    for axis, (table, column, title) in zip(axes, curves, strict=True):
        for number, name in enumerate(runs):
            steps, values = table_column(tables[name, table], column)
            if len(steps):
                marker = "o" if table == "validation" else None
                axis.plot(steps, values, label=name, marker=marker, color=f"C{number}")
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend()
    save_figure(figure, path)


def error_bar_curves(
    path: str | pathlib.Path,
    rows: Sequence[Mapping],
    *,
    x: str,
    y: str,
    series: str,
    panel: str,
    baseline: str = "",
) -> None:
    """Draw means over seeds with error bars of one standard deviation, in panels side by side.

    Columns of `rows`, results such as those of a sweep, are named by `panel` and `series`, which
    split them into curves, and by `x`, whose values are evenly spaced, and `y`. Rows that agree in
    all but y are seeds. The series `baseline` is drawn as a horizontal line, whatever its x.
    """
    panels = list(dict.fromkeys(row[panel] for row in rows))
    names = list(dict.fromkeys(row[series] for row in rows if row[series] != baseline))
    places = sorted({row[x] for row in rows if row[series] != baseline})
    figure = Figure(figsize=(6.5 * len(panels), 4.8), layout="constrained")
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
        axis.set(title=title, xlabel=x, ylabel=y)
        axis.set_xticks(range(len(places)), [str(place) for place in places])
        axis.set_xlim(-0.5, len(places) - 0.5)
        axis.grid(alpha=0.3)
    pairs = [zip(*axis.get_legend_handles_labels(), strict=True) for axis in figure.axes]
    legend = {label: handle for pair in pairs for handle, label in pair}
    figure.legend(legend.values(), legend.keys(), loc="outside right center")
    save_figure(figure, path)


def table_column(path: pathlib.Path, column: str) -> tuple[list[int], list[float]]:
    """Return steps and values of a column of a run's CSV log, where it is filled."""
    rows = [row for row in read_csv(path) if row.get(column)]
    with foreign_errors(f"{path}: a damaged row"):
        return [int(row["step"]) for row in rows], [float(row[column]) for row in rows]


def _panels(count: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """Lay out panels of `size` inches row by row, empty ones switched off."""
    rows = max(1, -(-count // columns))
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    axes = np.ravel(figure.subplots(rows, columns))
    for axis in axes[count:]:
        axis.axis("off")
    return figure, axes[:count].tolist()


def save_figure(figure: Figure, path: str | pathlib.Path) -> None:
    """Write a figure as PNG, all or nothing."""
    FigureCanvasAgg(figure)
    with write_atomically(path, "wb") as file:
        figure.savefig(file, format="png", dpi=110)
