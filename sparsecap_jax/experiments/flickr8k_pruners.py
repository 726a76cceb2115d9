"""Methods x sparsities on photos, for Up-Down and the ORT (docs/pruning).

    sparsecap sweep --sweep=flickr8k_pruners --workdir=runs/flickr8k_pruners

Every method takes as many training steps in all: one that prunes a trained model starts from a
dense run of half of them (`half`), and lottery tickets are trained again for the other half. The
most telling runs come first, so that a table of few rows says something. All products have
operands in bfloat16, which CPUs with such instructions multiply twice as fast.
"""

import pathlib
from typing import Any

from ml_collections import ConfigDict

from sparsecap_jax.data.datasets import Dataset
from sparsecap_jax.evaluation.plots import error_bar_curves
from sparsecap_jax.evaluation.published import METHODS as PAPERS
from sparsecap_jax.evaluation.published import published_results
from sparsecap_jax.evaluation.tables import markdown_table
from sparsecap_jax.experiments.flickr8k import (
    dev_curve,
    flickr8k_config,
    scores,
    significant,
)
from sparsecap_jax.experiments.paper_tables import PUBLISHED_AS
from sparsecap_jax.experiments.pruner_grid import DENSE, pruner_runs
from sparsecap_jax.experiments.sweep_tables import Row, mean_cell
from sparsecap_jax.experiments.sweeps import Sweep, SweepRun
from sparsecap_jax.files import write_atomically
from sparsecap_jax.pruning import make_pruner

STEPS = 4000
BATCH_SIZE = 16
GRID = {"up_down": (0.95, 0.975, 0.9, 0.8, 0.99), "ort": (0.95, 0.975)}
METHODS = (
    *("supermask", "mag_grad_uniform", "mag_blind", "mag_uniform", "lottery_mag_blind", "snip"),
)
HALF = "half"
# Weight of the sparsity loss, times 1 / (1 - sparsity): at 95 %, 25 came to 91 % in 2,500 steps on
# photos and 80 to the target (configs/photos.py).
SPARSITY_WEIGHT = 4.0
# The papers' curves: CIDEr on COCO's Karpathy test split.
COCO = {"up_down": "Up-Down on COCO, published", "relation_transformer": "ORT on COCO, published"}


def flickr8k_runs(seeds: int) -> list[SweepRun]:
    """Return, seed by seed and model by model, the dense runs, then all methods at a sparsity."""
    return pruner_runs(seeds, GRID, METHODS, _config, start=HALF, twins=True)


def evaluate(directory: pathlib.Path, dataset: Dataset, twin: pathlib.Path | None) -> Row:
    """Score the test split; compare it with the dense twin's captions of the same photos."""
    return scores(directory, dataset, twin) | {"dev_curve": dev_curve(directory)}


def draw(workdir: pathlib.Path, rows: list[Row]) -> None:
    """Draw CIDEr over the target sparsity, next to the papers' curves, and write `table.md`."""
    shown = [row for row in rows if row["method"] != HALF]
    columns: dict[str, Any] = {"x": "target", "y": "CIDEr", "series": "method", "panel": "model"}
    error_bar_curves(workdir / "cider.png", [*shown, *published()], **columns, baseline=DENSE)
    with write_atomically(workdir / "table.md") as file:
        file.write(table(rows))


def published() -> list[dict[str, Any]]:
    """Return the papers' results by the methods of the sweep, as rows of a sweep."""
    names = {PUBLISHED_AS.get(name, name): name for name in (DENSE, *METHODS)}
    return [
        {
            "model": COCO[row["model"]],
            "method": names[row["method"]],
            "target": row["sparsity"],
            "CIDEr": row["CIDEr"] / 100,
        }
        for row in published_results()
        if row["source"] == PAPERS and row["model"] in COCO and row["method"] in names
    ]


def table(rows: list[Row]) -> str:
    """Return a table of means over seeds: a row for each model, sparsity and method.

    "below" counts the seeds whose 95% interval of the difference to the dense twin is below 0.
    """
    titles = ["model", "sparsity", "method", "seeds", "CIDEr x 100", "BLEU-4", "METEOR"]
    titles += ["minus dense", "below"]
    lines = []
    settings = dict.fromkeys((row["model"], row["target"], row["method"]) for row in rows)
    for model, target, method in sorted(settings, key=lambda one: (one[0] != "up_down", one[1])):
        seeds = [
            row
            for row in rows
            if (row["model"], row["target"], row["method"]) == (model, target, method)
        ]
        cells = [mean_cell(seeds, name) for name in ("CIDEr", "Bleu_4", "METEOR", "difference")]
        cells.append(significant(seeds, "difference", below=True))
        lines.append([model, f"{target:g}", method, str(len(seeds)), *cells])
    return markdown_table(titles, lines)


def _config(model: str, method: str, sparsity: float, seed: int) -> ConfigDict:
    config = flickr8k_config(model, f"{method},sparsity={sparsity}" if sparsity else "", seed)
    config.data.batch_size, config.model.compute_dtype = BATCH_SIZE, "bfloat16"
    if method == "supermask":
        config.pruner.sparsity_weight = SPARSITY_WEIGHT / (1 - sparsity)
    continues = make_pruner(config.pruner, total_steps=STEPS).expects_trained
    steps = STEPS // 2 if method == HALF or continues else STEPS
    config.train.update(steps=steps, eval_every=steps // 4)
    return config


SWEEP = Sweep(flickr8k_runs, draw, evaluate, seeds=2)
