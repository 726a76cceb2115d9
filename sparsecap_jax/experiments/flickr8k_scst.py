"""All variants of self-critical training on photos, dense and 95% sparse Up-Down (docs/scst.md).

    sparsecap sweep --sweep=flickr8k_scst --workdir=runs/flickr8k_scst

Every variant continues the cross-entropy run of its seed, the same as of `flickr8k_pruners`.
"""

import pathlib

import numpy as np
from ml_collections import ConfigDict

from sparsecap_jax.data.datasets import Dataset
from sparsecap_jax.evaluation.plots import table_column
from sparsecap_jax.evaluation.tables import markdown_table
from sparsecap_jax.experiments.flickr8k import flickr8k_config, scores, significant
from sparsecap_jax.experiments.flickr8k_pruners import flickr8k_runs
from sparsecap_jax.experiments.scst_grid import START, Variant, scst_runs
from sparsecap_jax.experiments.sweep_tables import Row, mean_cell
from sparsecap_jax.experiments.sweeps import Sweep, SweepRun
from sparsecap_jax.files import write_atomically

# Run of `flickr8k_pruners` to start from, and words of the variants' config.
MODELS = {
    "dense": ("up_down/dense", "scst"),
    "sparse": ("up_down/supermask/0.95", "scst,mask_freeze"),
}
STEPS = {"dense": 800, "sparse": 800}
VALIDATIONS = 8
# Beams with a greedy baseline are no policy gradient: few of them, and a low rate (docs/scst.md).
VARIANTS = {
    "random, sample mean": Variant("random", "sample", 15, 1e-4, 32, STEPS),
    "random, greedy": Variant("random", "greedy", 15, 1e-4, 32, STEPS),
    "beam, sample mean": Variant("beam", "sample", 5, 1e-4, 32, STEPS),
    "beam, greedy": Variant("beam", "greedy", 2, 2e-5, 64, STEPS),
}
LOGGED = ("reward", "baseline", "advantage_std", "length", "entropy", "repeated_4grams")
_PERCENT = ("repeated_4grams", "dev_curve")
_SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)  # of training, at which the table by step has a row


def flickr8k_scst_runs(seeds: int) -> list[SweepRun]:
    """Return, seed by seed, each model's start, then all variants."""
    starts = {run.name: run.config for run in flickr8k_runs(seeds)}

    def config(model: str, variant: str, seed: int) -> ConfigDict:
        start, words = MODELS[model]
        if variant == START:
            return starts[f"{start}/seed_{seed}"]
        config = flickr8k_config("up_down", words, seed)
        config.data.seq_per_img = 1  # captions serve as references, not to be predicted
        VARIANTS[variant].apply(config, model, VALIDATIONS)
        config.train.update(log_every=10, steps_per_call=5)
        return config

    return scst_runs(seeds, MODELS, VARIANTS, config, twins=True)


def evaluate(directory: pathlib.Path, dataset: Dataset, twin: pathlib.Path | None) -> Row:
    """Score test and dev, compare them with the start's captions, and add the logged curves."""
    row = scores(directory, dataset, twin) | scores(directory, dataset, twin, "val")
    return row | (curves(directory) if twin else {})


def curves(directory: pathlib.Path) -> Row:
    """Return what a run logged, at five of its steps, as texts of numbers between blanks.

    `log_steps` are the steps, `dev_curve` the CIDEr of the validation there, and columns of
    `LOGGED` the means over what was logged since the step before.
    """
    logs = {name: table_column(directory / "train.csv", name) for name in LOGGED}
    checked = dict(zip(*table_column(directory / "validation.csv", "CIDEr"), strict=True))
    last = max(logs["reward"][0])
    marks = sorted({max(1, round(share * last)) for share in _SHARES})
    row = {"log_steps": " ".join(map(str, marks))}
    row["dev_curve"] = " ".join(f"{checked[k]:.4f}" if k in checked else "-" for k in marks)
    for name, (steps, values) in logs.items():
        cells = []
        for low, high in zip([0, *marks], marks, strict=False):
            inside = [x for step, x in zip(steps, values, strict=True) if low < step <= high]
            cells.append(f"{np.mean(inside):.4g}" if inside else "-")
        row[name] = " ".join(cells)
    return row


def draw(workdir: pathlib.Path, rows: list[Row]) -> None:
    """Write `table.md`, the scores, and `steps.md`, the logs by step."""
    for name, text in (("table.md", score_table(rows)), ("steps.md", step_table(rows))):
        with write_atomically(workdir / name) as file:
            file.write(text)


def score_table(rows: list[Row]) -> str:
    """Return a table of means over seeds; "above" counts seeds whose gain's interval is above 0."""
    titles = ["model", "training", "seeds", "dev CIDEr x 100", "gain", "above"]
    titles += ["test CIDEr x 100", "gain", "above", "BLEU-4", "METEOR", "words", "repetition %"]
    lines = []
    for (model, variant), seeds in _by_setting(rows).items():
        cells = [model, variant, str(len(seeds))]
        for split in ("dev_", ""):
            cells += [mean_cell(seeds, f"{split}{name}") for name in ("CIDEr", "difference")]
            cells.append(significant(seeds, f"{split}difference", below=False))
        cells += [mean_cell(seeds, name) for name in ("Bleu_4", "METEOR")]
        lines.append([*cells, mean_cell(seeds, "words", 1.0), mean_cell(seeds, "repetition")])
    return markdown_table(titles, lines)


def step_table(rows: list[Row]) -> str:
    """Return a table of what the runs logged by step, means over seeds."""
    titles = ["model", "training", "step", "reward", "baseline", "spread of advantages", "tokens"]
    titles += ["-log p per token", "repeated 4-grams %", "dev CIDEr x 100"]
    lines = []
    for (model, variant), seeds in _by_setting(rows).items():
        columns = [
            _means([str(row.get(name) or "") for row in seeds], 100.0 if name in _PERCENT else 1.0)
            for name in ("log_steps", *LOGGED, "dev_curve")
        ]
        lines += [[model, variant, *cells] for cells in zip(*columns, strict=False)]
    return markdown_table(titles, lines)


def _by_setting(rows: list[Row]) -> dict[tuple[str, str], list[Row]]:
    settings: dict[tuple[str, str], list[Row]]
    settings = {(model, variant): [] for model in MODELS for variant in (START, *VARIANTS)}
    for row in rows:
        settings[row["model"], row["variant"]].append(row)
    return {setting: seeds for setting, seeds in settings.items() if seeds}


def _means(texts: list[str], scale: float) -> list[str]:
    """Return means of the numbers at each place of several texts; "" where one is no number."""
    means = []
    for cells in zip(*(text.split() for text in texts), strict=False):
        try:
            means.append(f"{scale * np.mean([float(cell) for cell in cells]):.4g}")
        except ValueError:
            means.append("")
    return means


SWEEP = Sweep(flickr8k_scst_runs, draw, evaluate, seeds=2)
