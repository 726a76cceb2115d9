"""Methods x sparsities on the toy scenes, for a small Up-Down and a small ORT (docs/pruning).

    sparsecap sweep --sweep=toy_pruners --workdir=runs/toy_pruners

Methods that prune a trained model start from the dense run of the same seed.
"""

import pathlib
from typing import Any

from ml_collections import ConfigDict

from sparsecap_jax.evaluation.plots import error_bar_curves
from sparsecap_jax.experiments.pruner_grid import pruner_runs
from sparsecap_jax.experiments.sweep_tables import Row
from sparsecap_jax.experiments.sweeps import Sweep, SweepRun, toy_config
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
    return pruner_runs(seeds, dict.fromkeys(MODELS, SPARSITIES), METHODS, _config)


def draw(workdir: pathlib.Path, rows: list[Row]) -> None:
    """Draw CIDEr over the target sparsity."""
    columns: dict[str, Any] = {"x": "target", "y": "CIDEr", "series": "method", "panel": "model"}
    error_bar_curves(workdir / "cider.png", rows, **columns, baseline="dense")


def _config(model: str, method: str, sparsity: float, seed: int) -> ConfigDict:
    words = f"{method},sparsity={sparsity}" if sparsity else ""
    config, steps = toy_config(seed, words, **MODELS[model]), STEPS[model]
    if method == "supermask":
        config.pruner.sparsity_weight = SPARSITY_WEIGHTS[model] / (1 - sparsity)
        config.optimizer.mask_epsilon = MASK_EPSILON
    if make_pruner(config.pruner, total_steps=steps).expects_trained:
        steps = steps * 2 // 3
    config.train.update(steps=steps, eval_every=steps)
    config.data.update(name="toy_plain", seq_per_img=1)
    config.eval.beam_size_test = 1
    return config


SWEEP = Sweep(toy_runs, draw)
