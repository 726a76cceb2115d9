"""Curves and maps as SVG text for pages: no library, no script, colours of the page's styles."""

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np

Curve = tuple[Sequence[int], Sequence[float]]
"""Steps, in order, and values."""

_POINTS = 240  # of a curve; more are averaged
_DOTS = 40  # a curve of fewer points shows each
_CELLS = 48  # of a row of a map
_WIDTH, _HEIGHT = 420, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 20, 8, 22


def chart(title: str, curves: Mapping[str, Curve], last_step: int) -> str:
    """Return a figure of some curves over steps from 0 to `last_step`.

    Each curve has a colour and dashes of its own, and its last value in the legend. Values that
    are not finite are left out.
    """
    shown = {name: _finite(*curve) for name, curve in curves.items()}
    shown = {name: curve for name, curve in shown.items() if len(curve[0])}
    if not shown:
        return ""
    values = np.concatenate([values for _, values in shown.values()])
    ticks = nice_ticks(float(values.min()), float(values.max()))
    low, high = ticks[0], ticks[-1]

    def x(step):
        return f"{_LEFT + (_WIDTH - _LEFT - _RIGHT) * step / max(last_step, 1):.1f}"

    def y(value):
        share = (value - low) / (high - low)
        return f"{_HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * share:.1f}"

    lines = []
    for tick in ticks:
        lines.append(f'<path class="grid" d="M{_LEFT} {y(tick)}H{_WIDTH - _RIGHT}"/>')
        lines.append(_text(f"{tick:.6g}", _LEFT - 6, float(y(tick)) + 4, "end"))
    for tick in nice_ticks(0.0, float(last_step), integers=True):
        if tick <= last_step:
            lines.append(_text(f"{tick:,.0f}", float(x(tick)), _HEIGHT - 6, "middle"))
    legend = []
    for number, (name, (steps, values)) in enumerate(shown.items()):
        kind = f"model-{number % 4}"
        points = [f"{x(s)} {y(v)}" for s, v in zip(*_averaged(steps, values), strict=True)]
        lines.append(f'<path class="curve {kind}" d="M{"L".join(points)}"/>')
        for step, value in zip(steps, values, strict=True) if len(steps) <= _DOTS else ():
            tip = f"<title>step {step:,}: {value:.4g}</title>"
            place = f'cx="{x(step)}" cy="{y(value)}" r="3"'
            lines.append(f'<circle class="dot {kind}" {place}>{tip}</circle>')
        line = f'<path class="curve {kind}" d="M0 4H28"/>'
        stroke = f'<svg viewBox="0 0 28 8" aria-hidden="true">{line}</svg>'
        legend.append(f"<li>{stroke}{html.escape(name)} {values[-1]:.4g}</li>")
    box = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{_described(title, shown)}"'
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption>"
        f'<ul class="legend">{"".join(legend)}</ul><svg {box}>{"".join(lines)}</svg></figure>\n'
    )


def heat_map(title: str, rows: Mapping[str, Curve]) -> str:
    """Return a map of values from 0 to 1: a row for each name, a column for each step.

    The last value of each row stands next to it in digits, and every cell has a tooltip.
    """
    steps = sorted({step for steps, _ in rows.values() for step in steps})
    kept = [steps[place] for place in spread(len(steps), _CELLS)]
    if not kept:
        return ""
    left = min(300, 7 * max(map(len, rows)) + 10)
    width, height = 760 - left - 60, 16
    cell, lines = width / len(kept), []
    for row, (name, (places, values)) in enumerate(rows.items()):
        known = dict(zip(places, values, strict=True))
        top = row * height
        lines.append(_text(name, left - 6, top + 12, "end"))
        for column, step in enumerate(kept):
            if step in known:
                place = f'x="{left + column * cell:.1f}" y="{top}" width="{cell + 0.3:.1f}"'
                place += f' height="{height - 2}"'
                tip = f"<title>{html.escape(name)}, step {step:,}: {known[step]:.2%}</title>"
                fill = f'fill-opacity="{min(max(known[step], 0), 1):.3f}"'
                lines.append(f'<rect class="cell" {place} {fill}>{tip}</rect>')
        lines.append(_text(f"{values[-1]:.2%}", left + width + 6, top + 12, "start"))
    bottom = len(rows) * height
    ends = ((kept[0], "start", left), (kept[-1], "end", left + width))
    for step, anchor, edge in ends[: len(kept)]:
        lines.append(_text(f"step {step:,}", edge, bottom + 14, anchor))
    box = f'viewBox="0 0 760 {bottom + 20}" role="img" aria-label="{html.escape(title)}"'
    return f'<div class="layers"><svg {box}>{"".join(lines)}</svg></div>\n'


def _text(text: str, x: float | int, y: float | int, anchor: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f"<text {place}>{html.escape(text)}</text>"


def nice_ticks(low: float, high: float, count: int = 4, integers: bool = False) -> list[float]:
    """Return about `count` round numbers that enclose an interval."""
    span = max(high - low, 1e-6 * max(abs(low), abs(high), 1.0))
    unit = 10.0 ** math.floor(math.log10(span / count))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor * count >= span * 0.999)
    step = max(step, 1.0) if integers else step
    first, last = math.floor(low / step + 1e-3), math.ceil(high / step - 1e-3)
    return [step * number for number in range(first, max(last, first + 1) + 1)]


def spread(count: int, most: int) -> list[int]:
    """Return at most `most` places out of `count`, evenly spread, the first and last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(place) for place in np.linspace(0, count - 1, most).tolist()})


def _finite(steps: Sequence[int], values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.array(values, np.float64)
    finite = np.isfinite(numbers)
    return np.array(steps, np.int64)[finite], numbers[finite]


def _averaged(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average neighbours until there are few points."""
    if len(steps) <= _POINTS:
        return steps, values
    parts = np.array_split(np.arange(len(steps)), _POINTS)
    means = [np.array([column[part].mean() for part in parts]) for column in (steps, values)]
    return means[0], means[1]


def _described(title: str, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str:
    parts = [
        f"{name} from {values[0]:.4g} at step {steps[0]} to {values[-1]:.4g} at step {steps[-1]}"
        for name, (steps, values) in curves.items()
    ]
    return html.escape(f"{title}: {'; '.join(parts)}")
