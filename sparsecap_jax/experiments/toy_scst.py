"""All variants of self-critical training on the toy scenes, dense and 95% sparse (docs/scst.md).

    sparsecap sweep --sweep=toy_scst --workdir=runs/scst_sweep

Every variant continues the cross-entropy run of its seed, which is short to leave room for gains.
"""

import pathlib

from ml_collections import ConfigDict

from sparsecap_jax.evaluation.plots import training_curves
from sparsecap_jax.evaluation.tables import markdown_table
from sparsecap_jax.experiments.scst_grid import START, Variant, scst_runs
from sparsecap_jax.experiments.sweep_tables import Row
from sparsecap_jax.experiments.sweeps import Sweep, SweepRun, toy_config
from sparsecap_jax.files import write_atomically

# A greedy baseline is noisier than the mean of the other samples: its runs are longer, or their
# batches larger and their rate lower. Random samples of sparse models, which are less sure of
# their words, take twice as long to catch up with the greedy caption.
EQUAL = {"dense": 300, "sparse": 300}
VARIANTS = {
    "beam, sample mean": Variant("beam", "sample", 5, 5e-4, 16, EQUAL),
    "random, sample mean": Variant("random", "sample", 15, 1e-3, 16, {"dense": 450, "sparse": 900}),
    "beam, greedy": Variant("beam", "greedy", 2, 6e-5, 64, EQUAL),
    "random, greedy": Variant("random", "greedy", 15, 8e-4, 16, {"dense": 1200, "sparse": 2400}),
}
# Words of the configs of a start, and of the variants that continue it.
MODELS = {"dense": ("", ""), "sparse": ("supermask,sparsity=0.95", "mask_freeze")}
START_STEPS = {"dense": 1000, "sparse": 1400}


def toy_runs(seeds: int) -> list[SweepRun]:
    """Return, seed by seed, each model's start, then all variants."""
    return scst_runs(seeds, MODELS, VARIANTS, _config)


def draw(workdir: pathlib.Path, rows: list[Row]) -> None:
    """Write the table of test CIDEr, and draw the curves of the first seed's dense runs."""
    with write_atomically(workdir / "table.md") as file:
        file.write(cider_table(rows))
    names = [f"{one.sample}_{one.baseline}" for one in VARIANTS.values()]
    runs = {name: workdir / "dense" / name / "seed_0" for name in names}
    runs = {name: run for name, run in runs.items() if (run / "train.csv").exists()}
    if runs:
        training_curves(workdir / "curves.png", runs)


def cider_table(rows: list[Row]) -> str:
    """Return a table of test CIDEr: starts and variants by seed, and the least gain of each."""
    seeds = sorted({row["seed"] for row in rows})
    cider = {(row["model"], row["variant"], row["seed"]): row["CIDEr"] for row in rows}
    titles = ["model", "training", *(f"seed {seed}" for seed in seeds), "least gain"]
    table = []
    for model in MODELS:
        for variant in (START, *VARIANTS):
            scores = {seed: cider.get((model, variant, seed)) for seed in seeds}
            gains = [x - cider[model, START, k] for k, x in scores.items() if x is not None]
            least = f"{min(gains):+.3f}" if gains and variant != START else ""
            cells = [f"{score:.3f}" if score is not None else "" for score in scores.values()]
            table.append([model, variant, *cells, least])
    return markdown_table(titles, table)


def _config(model: str, variant: str, seed: int) -> ConfigDict:
    started, rewarded = MODELS[model]
    if variant == START:
        config, steps = toy_config(seed, started), START_STEPS[model]
        config.train.update(steps=steps, eval_every=steps)
        return config
    config = toy_config(seed, "scst", rewarded)
    VARIANTS[variant].apply(config, model, validations=6)
    return config


SWEEP = Sweep(toy_runs, draw)
