"""Page of a run in training: curves, sparsity of tensors, captions of a few images over time."""

import dataclasses
import html
from collections.abc import Mapping, Sequence

from sparsecap_jax.evaluation.pages import assemble
from sparsecap_jax.evaluation.pages.charts import Curve, chart, heat_map, spread
from sparsecap_jax.evaluation.pages.explorer import marked_words
from sparsecap_jax.text import unicode_words

_CAPTIONS = 12  # of an image, over time
_REFRESH = '<meta http-equiv="refresh" content="60">\n'
PANELS: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "Loss": (("train", "caption_loss", "training"), ("validation", "loss", "validation")),
    "CIDEr": (("validation", "CIDEr", "validation"),),
    "BLEU and ROUGE": tuple(("validation", n, n) for n in ("Bleu_1", "ROUGE_L", "Bleu_4")),
    "Sparsity of prunable weights": (("train", "sparsity", "all prunable weights"),),
    "Reward of samples": (("train", "reward", "samples"), ("train", "baseline", "baseline")),
    "Learning rate": (("train", "learning_rate", "learning rate"),),
}
"""Curves of each chart: table, column, name."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a run has logged so far.

    Attributes:
        title: what is trained.
        tables: curves by table ("train", "validation", "sparsity") and column.
        samples: captions of some images at each validation: step, and text by image id.
        last_step: of the whole training.
        finished: whether it has come to its end.
        best_step: of the weights that are kept as the best, once finished; None where none came
            within tolerance of its target sparsity.
    """

    title: str
    tables: Mapping[str, Mapping[str, Curve]]
    samples: Sequence[tuple[int, Mapping[str, str]]]
    last_step: int
    finished: bool = False
    best_step: int | None = None


@dataclasses.dataclass(frozen=True)
class Sample:
    """A validation image that the page follows.

    Attributes:
        image_id: as text.
        references: its captions.
        picture: URL of a small copy, or None.
    """

    image_id: str
    references: Sequence[str]
    picture: str | None = None


def summary_page(progress: Progress, samples: Sequence[Sample]) -> str:
    """Return the page, which depends on its arguments alone; until the end it reloads itself."""
    logged = [steps[-1] for table in progress.tables.values() for steps, _ in table.values()]
    done = f"Step {max(logged, default=0):,} of {progress.last_step:,}"
    state = f"{done}, finished." if progress.finished else f"{done}; renewed at every validation."
    head, middle, tail = assemble(
        "summary.html",
        styles=["page.css", "summary.css"],
        texts={"title": progress.title, "state": state},
    )
    parts = [head, "" if progress.finished else _REFRESH, middle, '<div class="charts">\n']
    parts += [chart(name, curves, progress.last_step) for name, curves in panels(progress)]
    parts += ["</div>\n", _scores(progress)]
    layers = progress.tables.get("sparsity", {})
    if layers:
        title = "Sparsity of each tensor at each validation"
        parts += [f"<h2>{title}</h2>\n", heat_map(title, layers)]
    if samples and progress.samples:
        parts.append('<h2>What it says of some validation images</h2>\n<div class="samples">\n')
        parts += [_sample(sample, progress.samples) for sample in samples]
        parts.append("</div>\n")
    return "".join([*parts, tail])


def panels(progress: Progress) -> list[tuple[str, dict[str, Curve]]]:
    """Return the charts that have anything to show, and their curves by name."""
    found = []
    for title, columns in PANELS.items():
        tables = progress.tables
        curves = {
            name: tables[table][column]
            for table, column, name in columns
            if tables.get(table, {}).get(column, ((), ()))[0]
        }
        if curves:
            found.append((title, curves))
    return found


def _scores(progress: Progress) -> str:
    """Return a table of the best and the last validation."""
    columns = progress.tables.get("validation", {})
    steps = sorted({step for steps, _ in columns.values() for step in steps})
    if not steps:
        return ""
    named = {"last": steps[-1]}
    if progress.best_step in steps:
        named = {"best": progress.best_step, **named}
    elif "CIDEr" in columns:
        places, values = columns["CIDEr"]
        named = {"highest CIDEr": places[values.index(max(values))], **named}
    names = ("validation", "step", *columns)
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in names)
    rows = []
    for name, step in named.items():
        cells = [f'<th scope="row">{name}</th><td>{step:,}</td>']
        for places, values in columns.values():
            known = dict(zip(places, values, strict=True))
            cells.append(f"<td>{known[step]:.4f}</td>" if step in known else "<td>-</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    table = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    region = '<div class="wide" tabindex="0" role="region" aria-label="Validation">'
    return f"<h2>Validation</h2>\n{region}<table>{table}</table></div>\n"


def _sample(sample: Sample, history: Sequence[tuple[int, Mapping[str, str]]]) -> str:
    known = {word for text in sample.references for word in unicode_words(text)}
    told = [(step, texts[sample.image_id]) for step, texts in history if sample.image_id in texts]
    told = [told[place] for place in spread(len(told), _CAPTIONS)][::-1]
    rows = [
        f'<tr><th scope="row">{step:,}</th><td>{_marked(text, known)}</td></tr>'
        for step, text in told
    ]
    name = html.escape(sample.image_id)
    picture = f'<img alt="image {name}" src="{sample.picture}">' if sample.picture else ""
    references = "".join(f"<li>{html.escape(text)}</li>" for text in sample.references)
    head = '<thead><tr><th scope="col">step</th><th scope="col">caption</th></tr></thead>'
    return (
        f'<section class="sample">{picture}<h3>Image {name}</h3>'
        f'<ul aria-label="references">{references}</ul>'
        f"<table>{head}<tbody>{''.join(rows)}</tbody></table></section>\n"
    )


def _marked(caption: str, known: set[str]) -> str:
    """Return a caption as HTML, its words that are in no reference marked."""
    text, unknown = marked_words(caption, known)
    places, parts, place = set(unknown), [], 0
    for word in text.split(" "):
        pieces = []
        for piece in word.split("\u200b"):
            shown = html.escape(piece)
            pieces.append(f"<mark>{shown}</mark>" if place in places else shown)
            place += 1
        parts.append("".join(pieces))
    return " ".join(parts)
