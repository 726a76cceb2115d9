"""All variants of self-critical training on the toy scenes, dense and 95% sparse (docs/scst.md).

    python launch/sweep.py --sweep=toy_scst --workdir=runs/toy_scst

Every variant goes on from the cross-entropy run of its seed, which is short: it leaves room.
"""

import pathlib

from ml_collections import ConfigDict

from sparsecap_jax.evaluation.plots import training_curves
from sparsecap_jax.files import write_atomically
from sparsecap_jax.recipes import TINY_UP_DOWN, make_config
from sparsecap_jax.sweeps import Row, Sweep, SweepRun

VARIANTS = {
    "random, sample mean": {"sample": "random", "baseline": "sample"},
    "random, greedy": {"sample": "random", "baseline": "greedy"},
    "beam, sample mean": {"sample": "beam", "baseline": "sample"},
    "beam, greedy": {"sample": "beam", "baseline": "greedy"},
}
START = "cross-entropy"
# Words of the config of a start, and of what goes on from it.
MODELS = {"dense": ("", ""), "sparse": ("supermask,sparsity=0.95", "mask_freeze")}
START_STEPS = {"dense": 1000, "sparse": 1400}
STEPS, EVAL_EVERY, SAMPLES = 150, 50, 15


def toy_runs(seeds: int) -> list[SweepRun]:
    """Seed by seed, each model's start and then all variants."""
    runs = []
    for seed in range(seeds):
        for model, (begun, rewarded) in MODELS.items():
            start = f"{model}/start/seed_{seed}"
            labels = {"model": model, "variant": START, "seed": seed}
            runs.append(SweepRun(start, labels, _config(begun, seed, START_STEPS[model])))
            for variant, fields in VARIANTS.items():
                name = f"{model}/{fields['sample']}_{fields['baseline']}/seed_{seed}"
                config = _config(f"scst,{rewarded}" if rewarded else "scst", seed, STEPS)
                config.scst.update(num_samples=SAMPLES, **fields)
                runs.append(SweepRun(name, {**labels, "variant": variant}, config, start))
    return runs


def draw(workdir: pathlib.Path, rows: list[Row]) -> None:
    """Write the table of test CIDEr, and draw the curves of the first seed's dense runs."""
    with write_atomically(workdir / "table.md") as file:
        file.write(cider_table(rows))
    names = [f"{fields['sample']}_{fields['baseline']}" for fields in VARIANTS.values()]
    runs = {name: workdir / "dense" / name / "seed_0" for name in names}
    runs = {name: run for name, run in runs.items() if (run / "train.csv").exists()}
    if runs:
        training_curves(workdir / "curves.png", runs)


def cider_table(rows: list[Row]) -> str:
    """Test CIDEr of starts and variants, a line each: seeds, and the least gain over the start."""
    seeds = sorted({row["seed"] for row in rows})
    found = {(row["model"], row["variant"], row["seed"]): row["CIDEr"] for row in rows}
    titles = ["model", "training", *(f"seed {seed}" for seed in seeds), "least gain"]
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for model in MODELS:
        for variant in (START, *VARIANTS):
            scores = {seed: found.get((model, variant, seed)) for seed in seeds}
            gains = [
                score - found[model, START, seed]
                for seed, score in scores.items()
                if score is not None
            ]
            least = f"{min(gains):+.3f}" if gains and variant != START else ""
            cells = [f"{score:.3f}" if score is not None else "" for score in scores.values()]
            lines.append(f"| {' | '.join([model, variant, *cells, least])} |")
    return "\n".join(lines) + "\n"


def _config(words: str, seed: int, steps: int) -> ConfigDict:
    arg = f"tiny,{words}" if words else "tiny"
    config = make_config(
        arg, "up_down", fields={}, pruned={}, tiny=TINY_UP_DOWN, optimizer={}, weight_scale=0.5
    )
    config.seed = seed
    config.train.update(steps=steps, eval_every=EVAL_EVERY if "scst" in words else steps)
    return config


SWEEP = Sweep(toy_runs, draw)
