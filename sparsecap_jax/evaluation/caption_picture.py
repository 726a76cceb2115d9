"""A picture to show around: photos with the captions of several models, and the models' sizes."""

import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sparsecap_jax.data.datasets import Dataset
from sparsecap_jax.data.karpathy import Record
from sparsecap_jax.files import save_figure
from sparsecap_jax.photos.images import open_photo

WRONG = "#c62828"
_PLAIN, _FAINT, _BAR = "#1a1a1a", "#757575", "#3367a8"
_LINE = 0.24  # inches
_ROWS = 8  # lines of text below a picture
_WIDTH, _MARGIN = 4.6, 0.25  # inches, of a panel and around it


def wrong_words(caption: str, references: Sequence[str]) -> list[tuple[str, bool]]:
    """Return the words of a caption, each with whether no reference of the image has it."""
    known = {word for text in references for word in _bare(text).split()}
    return [(word, bool(_bare(word)) and _bare(word) not in known) for word in caption.split()]


def _bare(text: str) -> str:
    """Return words of letters, digits, hyphens and apostrophes alone."""
    return " ".join(re.findall(r"\w+(?:['-]\w+)*", text.lower()))


def caption_picture(
    path: str | pathlib.Path,
    records: Sequence[Record],
    dataset: Dataset,
    captions: Mapping[str, Mapping],
    *,
    sizes: Mapping[str, int],
    title: str,
) -> None:
    """Draw photos in a row, captions below, and the models' sizes, as PNG.

    Words that no reference of the photo has are red and bold.

    Args:
        path: the file.
        records: the photos.
        dataset: where they lie.
        captions: texts by image id, for each model by its name.
        sizes: of the models' files in bytes, by name.
        title: one sentence above it all.

    Raises:
        DataError: a photo is missing, or is none.
    """
    photos = [open_photo(dataset.images / record.filename) for record in records]
    bars = 0.5 + 0.36 * len(sizes)
    side = _WIDTH - 2 * _MARGIN
    tall = side * max(photo.height / photo.width for photo in photos)
    width, height = _WIDTH * len(records), 0.8 + tall + _ROWS * _LINE + bars
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(_MARGIN / width, 1 - 0.4 / height, title, fontsize=15, color=_PLAIN, va="center")
    for number, (record, photo) in enumerate(zip(records, photos, strict=True)):
        left, bottom = number * _WIDTH + _MARGIN, bars + _ROWS * _LINE
        place = (left / width, bottom / height, side / width, tall / height)
        axis = figure.add_axes(place, label=record.filename)
        axis.imshow(photo)
        axis.axis("off")
        shown = {name: texts[record.image_id] for name, texts in captions.items()}
        _write(figure, left, bottom - 1.2 * _LINE, shown, record.raw)
    _draw_sizes(figure, bars, sizes)
    save_figure(figure, path)


def _write(
    figure: Figure, left: float, top: float, captions: Mapping[str, str], references: Sequence[str]
) -> None:
    """Write a reference and the captions, words side by side, from a place in inches."""
    texts = {"reference": [(word, False) for word in references[0].split()]}
    texts |= {name: wrong_words(text, references) for name, text in captions.items()}
    renderer = cast(FigureCanvasAgg, figure.canvas).get_renderer()
    for name, words in texts.items():
        x, side = left, _WIDTH - 2 * _MARGIN
        for word, style in [(name, {"color": _FAINT}), *_styled(words)]:
            drawn = _at(figure, x, top, word, style)
            size = drawn.get_window_extent(renderer).width / figure.dpi
            if x + size > left + side and x > left:
                x, top = left + 0.15, top - _LINE
                width, height = figure.get_size_inches()
                drawn.set_position((x / width, top / height))
            x += size + 0.07
        top -= 1.25 * _LINE


def _styled(words: Sequence[tuple[str, bool]]) -> Iterator[tuple[str, dict]]:
    for word, wrong in words:
        yield word, {"color": WRONG, "weight": "bold"} if wrong else {"color": _PLAIN}


def _at(figure: Figure, x: float, y: float, word: str, style: Mapping):
    width, height = figure.get_size_inches()
    return figure.text(x / width, y / height, word, fontsize=11, parse_math=False, **style)


def _draw_sizes(figure: Figure, height: float, sizes: Mapping[str, int]) -> None:
    width, whole = figure.get_size_inches()
    axis: Axes = figure.add_axes(
        (1.2 / width, 0.15 / whole, 1 - (1.2 + 1.6) / width, (height - 0.45) / whole)
    )
    for row, (name, size) in enumerate(sizes.items()):
        axis.barh(-row, size, color=_BAR, height=0.6)
        axis.text(size, -row, f"  {size / 1e6:.2f} MB", va="center", fontsize=11, color=_PLAIN)
        axis.text(0, -row, f"{name}  ", va="center", ha="right", fontsize=11, color=_FAINT)
    axis.set_xlim(0, max(sizes.values()))
    axis.axis("off")
