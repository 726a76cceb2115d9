"""All variants of self-critical training on the toy scenes, dense and 95% sparse (docs/scst.md).

    python launch/sweep.py --sweep=toy_scst --workdir=runs/scst_sweep

Every variant continues the cross-entropy run of its seed, which is short to leave room for gains.
"""

import dataclasses
import pathlib
from typing import Any

from ml_collections import ConfigDict

from sparsecap_jax.evaluation.plots import training_curves
from sparsecap_jax.experiments.sweeps import Row, Sweep, SweepRun, markdown_table
from sparsecap_jax.files import write_atomically
from sparsecap_jax.runs.recipes import TINY_UP_DOWN, make_config


@dataclasses.dataclass(frozen=True)
class Variant:
    """A variant and its recipe.

    Attributes:
        sample: search for the captions to reward.
        baseline: caption or mean that their reward is compared with.
        num_samples: captions per image.
        learning_rate: constant.
        images: per step.
        steps: of training.
        sparse_steps: the same, from a 95% sparse start.
    """

    sample: str
    baseline: str
    num_samples: int
    learning_rate: float
    images: int
    steps: int
    sparse_steps: int

    @property
    def folder(self) -> str:
        """Name in paths."""
        return f"{self.sample}_{self.baseline}"

    def apply(self, config: ConfigDict, model: str) -> None:
        """Set these fields in the config of a run of a `dense` or `sparse` model."""
        steps = self.sparse_steps if model == "sparse" else self.steps
        fields = ("sample", "baseline", "num_samples")
        config.scst.update({field: getattr(self, field) for field in fields})
        config.optimizer.learning_rate = self.learning_rate
        config.data.batch_size = self.images
        config.train.update(steps=steps, eval_every=steps // 6)


# A greedy baseline is noisier than the mean of the other samples: its runs are longer, or their
# batches larger and their rate lower. Random samples of sparse models, which are less sure of
# their words, take twice as long to catch up with the greedy caption.
VARIANTS = {
    "beam, sample mean": Variant("beam", "sample", 5, 5e-4, 16, 300, 300),
    "random, sample mean": Variant("random", "sample", 15, 1e-3, 16, 450, 900),
    "beam, greedy": Variant("beam", "greedy", 2, 6e-5, 64, 300, 300),
    "random, greedy": Variant("random", "greedy", 15, 8e-4, 16, 1200, 2400),
}
START = "cross-entropy"
# Words of the configs of a start, and of the variants that continue it.
MODELS = {"dense": ("", ""), "sparse": ("supermask,sparsity=0.95", "mask_freeze")}
START_STEPS = {"dense": 1000, "sparse": 1400}


def toy_runs(seeds: int) -> list[SweepRun]:
    """Return, seed by seed, each model's start, then all variants."""
    runs = []
    for seed in range(seeds):
        for model, (started, rewarded) in MODELS.items():
            start = f"{model}/start/seed_{seed}"
            labels: dict[str, Any] = {"model": model, "variant": START, "seed": seed}
            config = _config(started, seed)
            config.train.update(steps=START_STEPS[model], eval_every=START_STEPS[model])
            runs.append(SweepRun(start, labels, config))
            for name, variant in VARIANTS.items():
                config = _config(f"scst,{rewarded}" if rewarded else "scst", seed)
                variant.apply(config, model)
                folder = f"{model}/{variant.folder}/seed_{seed}"
                runs.append(SweepRun(folder, {**labels, "variant": name}, config, start))
    return runs


def draw(workdir: pathlib.Path, rows: list[Row]) -> None:
    """Write the table of test CIDEr, and draw the curves of the first seed's dense runs."""
    with write_atomically(workdir / "table.md") as file:
        file.write(cider_table(rows))
    names = [variant.folder for variant in VARIANTS.values()]
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
            gains = [
                score - cider[model, START, seed]
                for seed, score in scores.items()
                if score is not None
            ]
            least = f"{min(gains):+.3f}" if gains and variant != START else ""
            cells = [f"{score:.3f}" if score is not None else "" for score in scores.values()]
            table.append([model, variant, *cells, least])
    return markdown_table(titles, table)


def _config(words: str, seed: int) -> ConfigDict:
    arg = f"tiny,{words}" if words else "tiny"
    config = make_config(
        arg, "up_down", fields={}, pruned={}, tiny=TINY_UP_DOWN, optimizer={}, weight_scale=0.5
    )
    config.seed = seed
    return config


SWEEP = Sweep(toy_runs, draw)
