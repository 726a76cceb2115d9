"""The summary of a finished run as a picture: its curves, layers and captions over time."""

import base64
import io
import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from sparsecap_jax.evaluation.pages.charts import Curve, spread
from sparsecap_jax.evaluation.pages.summary import Progress, Sample, panels
from sparsecap_jax.files import save_figure

_ROWS = 7  # captions of an image, over time


def summary_picture(
    path: str | pathlib.Path, progress: Progress, samples: Sequence[Sample]
) -> None:
    """Draw what `pages.summary.summary_page` shows, as PNG."""
    charts = panels(progress)
    layers = progress.tables.get("sparsity", {})
    told = list(samples) if progress.samples else []
    inches = [2.9 * -(-len(charts) // 3), 0.2 * len(layers) + 1.1 if layers else 0]
    inches.append(1.9 * -(-len(told) // 2))
    height = sum(inches) + 0.5
    figure = Figure(figsize=(14, height))
    figure.suptitle(progress.title, fontweight="bold", x=0.05, ha="left", y=1 - 0.15 / height)
    top = height - 0.5  # grids have fixed places: finding them takes matplotlib seconds
    for number, (title, curves) in enumerate(charts):
        row, column = divmod(number, 3)
        place = (0.7 + 4.6 * column, top - 2.9 * row - 2.5, 3.7, 2.1)
        _draw_chart(_axes(figure, place), title, curves, progress.last_step)
    if layers:
        bottom = top - inches[0] - inches[1] + 0.65
        _draw_layers(_axes(figure, (3.6, bottom, 10.0, 0.2 * len(layers))), layers)
    for number, sample in enumerate(told):
        row, column = divmod(number, 2)
        bottom = top - inches[0] - inches[1] - 1.9 * row - 1.6
        left = _axes(figure, (0.3 + 6.9 * column, bottom, 1.9, 1.45))
        right = _axes(figure, (2.4 + 6.9 * column, bottom, 4.6, 1.45))
        _draw_sample(left, right, sample, progress)
    save_figure(figure, path)


def _axes(figure: Figure, inches: tuple[float, float, float, float]) -> Axes:
    """Return axes at left, bottom, width and height in inches."""
    width, height = figure.get_size_inches()
    left, bottom, wide, tall = inches
    return figure.add_axes((left / width, bottom / height, wide / width, tall / height))


def _draw_chart(axis: Axes, title: str, curves: Mapping[str, Curve], last_step: int) -> None:
    for number, (name, (steps, values)) in enumerate(curves.items()):
        style: dict[str, Any] = {"ls": ("-", "--", ":", "-.")[number % 4], "ms": 3}
        style |= {"marker": "o"} if len(steps) < 30 else {}
        axis.plot(steps, values, label=f"{name} {values[-1]:.4g}", **style)
    axis.set_title(title, fontsize=10, loc="left")
    axis.set_xlim(0, last_step)
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)


def _draw_layers(axis: Axes, layers: Mapping[str, Curve]) -> None:
    """Draw a map: tensors down, validations across; the last sparsity in digits."""
    steps = sorted({step for places, _ in layers.values() for step in places})
    grid = np.full((len(layers), len(steps)), np.nan)
    for row, (places, values) in enumerate(layers.values()):
        grid[row, np.searchsorted(steps, places)] = values
    axis.imshow(grid, vmin=0, vmax=1, aspect="auto", cmap="Blues", interpolation="nearest")
    names = [f"{name}  {values[-1]:.2%}" for name, (_, values) in layers.items()]
    axis.set_yticks(range(len(names)), names, fontsize=7)
    places = spread(len(steps), 8)
    axis.set_xticks(places, [f"{steps[place]:,}" for place in places], fontsize=8)
    axis.set_title("Sparsity of each tensor at each validation", fontsize=10, loc="left")


def _draw_sample(left: Axes, right: Axes, sample: Sample, progress: Progress) -> None:
    """Draw an image and what was said of it over time."""
    if sample.picture:
        content = base64.b64decode(sample.picture.partition(",")[2])
        left.imshow(Image.open(io.BytesIO(content), formats=["WEBP"]).convert("RGB"))
    left.set_title(f"image {sample.image_id}", fontsize=8)
    told = [
        (step, texts[sample.image_id])
        for step, texts in progress.samples
        if sample.image_id in texts
    ]
    told = [told[place] for place in spread(len(told), _ROWS)]
    lines = [f"reference: {sample.references[0]}"] if sample.references else []
    lines += [f"step {step:,}: {text}" for step, text in told]
    shown = [textwrap.shorten(line, 88, placeholder=" ...").replace("$", r"\$") for line in lines]
    right.text(0, 1, "\n".join(shown), va="top", fontsize=7.5, linespacing=1.4)
    for axis in (left, right):
        axis.axis("off")
