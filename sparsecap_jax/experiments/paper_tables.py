"""Tables of the papers: published figures, and those of the runs next to them."""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from sparsecap_jax.evaluation.published import METHODS, published_results
from sparsecap_jax.evaluation.tables import markdown_table
from sparsecap_jax.experiments.sweep_tables import Row, mean_cell
from sparsecap_jax.files import write_atomically

# Our pruners by the names that the papers have for them.
PUBLISHED_AS = {
    "mag_grad_uniform": "gradual",
    "mag_blind": "hard (blind)",
    "mag_dist": "hard (distribution)",
    "mag_uniform": "hard (uniform)",
    "lottery_mag_blind": "lottery (blind)",
    "lottery_mag_uniform": "lottery (uniform)",
    "lottery_mask_freeze": "lottery (gradual)",
    "snip": "SNIP",
}
_TITLES = (
    *("model", "method", "sparsity", "weight", "training", "seeds"),
    *("CIDEr, published", "CIDEr", "BLEU-4, published", "BLEU-4", "METEOR"),
    *("nonzeros (M), published", "nonzeros (M)", "source"),
)


def published_row(labels: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the published result of a setting, None where none is known.

    Args:
        labels: `model`, `variant`, `method`, `target` and `training` ("xe", or "scst" for the
            overview tables, whose models were trained with rewards).

    Returns:
        A row of `published_results`.
    """
    method = PUBLISHED_AS.get(labels["method"], labels["method"])
    key = (labels["model"], labels["variant"], method, round(labels["target"], 3))
    return _published().get((*key, labels["training"]))


@functools.cache
def _published() -> dict[tuple, dict[str, Any]]:
    return {
        (
            *(row["model"], row["variant"], row["method"], row["sparsity"]),
            "xe" if row["source"] == METHODS else "scst",
        ): row
        for row in published_results()
    }


def paper_table(settings: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> str:
    """Return the table of a paper in Markdown, with our figures next to the published ones.

    Args:
        settings: labels of all settings, in the order of the table.
        rows: results of finished runs: the labels of a setting, `seed`, scores from 0 to 1,
            `nonzeros`.

    Returns:
        A row for each setting, scores times 100 and nonzeros in millions; ours are means and
        standard deviations over seeds, empty until a run has finished.
    """
    lines = []
    for labels in settings:
        ours = [row for row in rows if all(row.get(key) == value for key, value in labels.items())]
        theirs = published_row(labels) or {}
        cells = [f"{labels['model']} {labels['variant']}".strip(), labels["method"]]
        cells += [f"{labels['target']:g}", f"{labels['weight']:g}" if labels["weight"] else ""]
        cells += [labels["training"], str(len(ours) or "")]
        for name in ("CIDEr", "Bleu_4"):
            cells += [_text(theirs.get(name)), mean_cell(ours, name)]
        cells += [mean_cell(ours, "METEOR"), _text(theirs.get("nonzeros"), 1e-6)]
        lines.append([*cells, mean_cell(ours, "nonzeros", 1e-6), theirs.get("source", "")])
    return markdown_table(_TITLES, lines)


def draw_table(
    workdir: pathlib.Path, settings: Sequence[Mapping[str, Any]], rows: Sequence[Row]
) -> None:
    """Write `table.md`."""
    with write_atomically(workdir / "table.md") as file:
        file.write(paper_table(settings, rows))


def _text(value: float | int | None, scale: float = 1.0) -> str:
    return "" if value is None else f"{scale * value:.1f}"
