"""Methods x sparsities on the toy scenes, for a small Up-Down and a small ORT (docs/pruning.md).

    python launch/sweep.py --sweep=toy_pruners --workdir=runs/toy_pruners

Methods that prune a trained model start from the dense run of the same seed.
"""

import pathlib

from ml_collections import ConfigDict

from sparsecap_jax.evaluation.plots import error_bar_curves
from sparsecap_jax.experiments.sweeps import Row, Sweep, SweepRun, toy_config
from sparsecap_jax.pruning import make_pruner
from sparsecap_jax.runs.recipes import TINY_TRANSFORMER

SPARSITIES = (0.8, 0.9, 0.95, 0.975, 0.99)
# The papers' main methods, and jaxpruner's RigL.
METHODS = ("supermask", "mag_grad_blind", "mag_blind", "snip", "rigl")
MODELS = {
    "up_down": {},
    "ort": {"model": "relation_transformer", "tiny": TINY_TRANSFORMER, "weight_scale": 1.5},
}
# Plain captions (CIDEr is 0 to 10), and runs just long enough to separate the methods.
STEPS = {"up_down": 900, "ort": 600}  # methods that prune a trained model take two thirds of these
# Supermasks: the weight of the sparsity loss, times 1 / (1 - sparsity) as in the papers, and the
# epsilon of the logits' Adam. Light weights were the best of those tried: with a heavier one, or a
# smaller epsilon, weights are pruned before the captioner has learnt which it needs.
SPARSITY_WEIGHTS = {"up_down": 1.5, "ort": 2.0}
MASK_EPSILON = 1e-3


def toy_runs(seeds: int) -> list[SweepRun]:
    """Return, seed by seed, the dense run of each model, then all methods at all sparsities."""
    runs = []
    for seed in range(seeds):
        for model in MODELS:
            dense = f"{model}/dense/seed_{seed}"
            labels = {"model": model, "method": "dense", "target": 0.0, "seed": seed}
            runs.append(SweepRun(dense, labels, _config(model, "", seed)))
            for sparsity in SPARSITIES:
                for method in METHODS:
                    config = _config(model, f"{method},sparsity={sparsity}", seed)
                    if method == "supermask":
                        config.pruner.sparsity_weight = SPARSITY_WEIGHTS[model] / (1 - sparsity)
                        config.optimizer.mask_epsilon = MASK_EPSILON
                    trained = make_pruner(config.pruner, total_steps=STEPS[model]).expects_trained
                    if trained:
                        steps = STEPS[model] * 2 // 3
                        config.train.update(steps=steps, eval_every=steps)
                    name = f"{model}/{method}/{sparsity}/seed_{seed}"
                    setting = {**labels, "method": method, "target": sparsity}
                    runs.append(SweepRun(name, setting, config, dense if trained else ""))
    return runs


def draw(workdir: pathlib.Path, rows: list[Row]) -> None:
    """Draw CIDEr over the target sparsity."""
    columns = {"x": "target", "y": "CIDEr", "series": "method", "panel": "model"}
    error_bar_curves(workdir / "cider.png", rows, **columns, baseline="dense")


def _config(model: str, words: str, seed: int) -> ConfigDict:
    config = toy_config(seed, words, **MODELS[model])
    config.train.update(steps=STEPS[model], eval_every=STEPS[model])
    config.data.update(name="toy_plain", seq_per_img=1)
    config.eval.beam_size_test = 1
    return config


SWEEP = Sweep(toy_runs, draw)
