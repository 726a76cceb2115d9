"""Report of the sparsity that a run reached: a table, TensorBoard scalars, and a picture."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from tensorboardX import SummaryWriter

from sparsecap_jax.evaluation.plots import table_column
from sparsecap_jax.files import save_figure, write_table
from sparsecap_jax.pruning.paths import by_path
from sparsecap_jax.pruning.summary import ALL, PRUNABLE, summarize, warn_nearly_empty
from sparsecap_jax.types import PyTree

FOLDER = "sparsity"
TENSORS, PICTURE = "tensors.csv", "report.png"


def write_sparsity_report(
    workdir: pathlib.Path,
    params: PyTree,
    masks: PyTree,
    initial: PyTree | None,
    step: int | None,
    folder: pathlib.Path | None = None,
) -> list[dict[str, Any]]:
    """Write `sparsity/tensors.csv` and `sparsity/report.png`, and scalars to the run's logs.

    A warning names each tensor that is over 99.9% sparse.

    Args:
        workdir: the run directory; its `train.csv` or `validation.csv` hold the sparsity over time.
        params: finished weights, numpy arrays, zeros in place.
        masks: their binary masks.
        initial: weights before training; None leaves their density out of the picture.
        step: step of the finished weights; None leaves the scalars out.
        folder: where to write table and picture; by default `sparsity/` in the run directory.

    Returns:
        Rows of the table; see `pruning.summary.summarize`.
    """
    rows = summarize(params, masks)
    warn_nearly_empty(rows)
    folder = folder or workdir / FOLDER
    write_table(folder / TENSORS, rows)
    if step is not None:
        with SummaryWriter(str(workdir / "tensorboard"), filename_suffix=".sparsity") as events:
            for row in rows:
                if row["prunable"] or row["tensor"] == ALL:
                    name = row["tensor"].strip("()")
                    events.add_scalar(f"final_sparsity/{name}", row["sparsity"], step)
    flat, binary, weights = by_path(params), by_path(masks), {}
    if initial is not None:
        first = by_path(initial)
        weights["initial"] = np.concatenate([np.ravel(first[path]) for path in binary])
    kept = [flat[path][np.asarray(mask) != 0] for path, mask in binary.items()]
    weights["kept"] = np.concatenate(kept)
    logs = [workdir / "train.csv", workdir / "validation.csv"]
    curves = [table_column(path, "sparsity") for path in logs if path.exists()]
    curve = next((curve for curve in curves if curve[0]), ([], []))
    _draw(folder / PICTURE, rows, curve, weights)
    return rows


def density(
    values: Float[np.ndarray, " N"], points: int = 400
) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, " P"]]:
    """Gaussian kernel density estimate, from a histogram and so fast for millions of values.

    Returns P = `points` places, evenly spread over the range and three bandwidths around it, and
    densities there; the bandwidth is Silverman's.
    """
    values = np.asarray(values, np.float64)
    quartiles = np.subtract(*np.percentile(values, [75, 25])) / 1.34
    spread = min(x for x in (values.std(), quartiles, 1.0) if x > 0) if values.std() else 1e-3
    width = 0.9 * spread * values.size**-0.2
    low, high = values.min() - 3 * width, values.max() + 3 * width
    counts, edges = np.histogram(values, points, (low, high))
    places = (edges[1:] + edges[:-1]) / 2
    kernel = np.exp(-0.5 * ((places[:, None] - places[None]) / width) ** 2)
    kernel /= width * np.sqrt(2 * np.pi)
    return places, kernel @ counts / values.size


def _draw(
    path: pathlib.Path,
    rows: Sequence[Mapping[str, Any]],
    curve: tuple[Sequence[int], Sequence[float]],
    weights: Mapping[str, np.ndarray],
) -> None:
    """Draw bars for each tensor, sparsity over training, and densities of weights."""
    bars = [row for row in rows if row["prunable"] and row["tensor"] != PRUNABLE]
    (overall,) = (row for row in rows if row["tensor"] == PRUNABLE)
    width, height = 15, max(4.0, 0.2 * len(bars) + 1.2)
    figure = Figure(figsize=(width, height))
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.4, 1, 1))
    # Fixed places: finding them takes matplotlib longer than drawing.
    names = 0.3 + 0.056 * max((len(row["tensor"]) for row in bars), default=0)  # inches
    edges = {"left": names / width, "right": 0.99, "wspace": 0.16}
    figure.subplots_adjust(**edges, bottom=0.55 / height, top=1 - 0.4 / height)
    places = np.arange(len(bars))[::-1]
    left.barh(places, [row["nonzeros"] / row["size"] for row in bars], color="C0")
    left.set_yticks(places, [row["tensor"] for row in bars], fontsize=7)
    kept = overall["nonzeros"] / overall["size"]
    left.axvline(kept, color="C3", ls="--", lw=1, label=f"overall {kept:.2%}")
    left.set_xscale("symlog", linthresh=0.01)
    left.set(xlim=(0, 1), title="weights kept of each tensor", xlabel="fraction kept")
    left.set_xticks([0, 0.01, 0.1, 1], ["0", "1%", "10%", "100%"])
    left.legend(fontsize=8, loc="lower right")
    middle.plot(*curve, marker="o" if len(curve[0]) < 30 else None, ms=3)
    middle.set(title="sparsity of prunable weights", xlabel="step", ylim=(-0.02, 1.02))
    top = 0.0
    for name, sample in weights.items():
        if sample.size:
            places, heights = density(sample)
            top = max(top, heights.max())
            right.plot(places, heights, label=f"{name} ({sample.size:,})")
    right.set(title="prunable weights: density", xlabel="weight", yscale="log")
    right.set_ylim(1e-5 * top, 2 * top)
    right.legend(fontsize=8)
    for axis in (left, middle, right):
        axis.grid(alpha=0.3)
    save_figure(figure, path)
