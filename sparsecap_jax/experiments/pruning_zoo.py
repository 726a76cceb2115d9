"""All pruning methods x sparsities on two small models, without a download (docs/pruning).

    sparsecap sweep --sweep=pruning_zoo --workdir=runs/pruning_zoo --table=

Every method takes as many training steps in all. Those that prune a trained model take a dense one
of half of the steps; those that prune layer by layer take one of all steps, and train no more.
Methods that users register are taken along with the package's.
"""

import pathlib
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from ml_collections import ConfigDict

from sparsecap_jax.evaluation.plots import line_style, panel_grid
from sparsecap_jax.evaluation.tables import markdown_table
from sparsecap_jax.experiments import zoo_models, zoo_training
from sparsecap_jax.experiments.sweep_tables import Row
from sparsecap_jax.experiments.sweeps import Sweep, SweepRun
from sparsecap_jax.files import save_figure, write_atomically
from sparsecap_jax.pruning import PRUNERS, make_pruner

SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.98)
STEPS = {"digits": 1000, "characters": 400}
DENSE = "dense"
LAYERWISE = "layers_"
# Structures besides single weights; 2:4 removes half of the weights, whatever the target.
STRUCTURES = {"magnitude_4x4": "4x4", "magnitude_channels": "channels", "magnitude_2:4": "2:4"}
FAMILIES = {
    "of a trained model": ("mag_", "lottery_"),
    "gradual": ("mag_grad_", "magnitude", "global_magnitude", "acdc"),
    "by gradients; by chance": ("snip", "saliency", "global_saliency", "adam_fisher", "random"),
    "sparse training": ("static_sparse", "set", "rigl", "magnitude_ste", "random_ste"),
    "without training": (LAYERWISE,),
    "structures": tuple(STRUCTURES),
    "trained masks; others": ("",),
}


def methods() -> list[str]:
    """Return the names of methods: those of the registry, structures, and pruning by layers.

    Methods that need masks of a pruned model find none of their own and are left out.
    """
    named = [name for name in PRUNERS if name != "none"]
    finding = [name for name in named if not make_pruner({"name": name}, 100).needs_masks]
    return [
        *finding,
        *STRUCTURES,
        *(LAYERWISE + name for name in ("magnitude", "wanda", "sparsegpt")),
    ]


def family(method: str) -> str:
    """Return the family of a method: that of the longest beginning of its name."""
    beginnings = {start: name for name, starts in FAMILIES.items() for start in starts}
    return beginnings[max(filter(method.startswith, beginnings), key=len)]


def zoo_runs(seeds: int) -> list[SweepRun]:
    """Return the runs, each of all seeds: model by model the dense one, then method by method."""
    runs = []
    for model in zoo_models.PROBLEMS:
        for method in (DENSE, *methods()):
            targets: tuple[float, ...] = SPARSITIES
            if method == DENSE:
                targets = (0.0,)
            elif method.endswith("2:4"):
                targets = (0.5,)
            for target in targets:
                labels = {"model": model, "method": method, "target": target, "seeds": seeds}
                config = ConfigDict({**labels, "steps": STEPS[model]})
                runs.append(SweepRun(f"{model}/{method}/{target}", labels, config))
    return runs


def settings_of(method: str, kernels: tuple[str, ...]) -> dict[str, Any]:
    """Return the fields of a method's pruner."""
    if method == DENSE:
        return {"name": "none"}
    if method not in STRUCTURES:
        return {"name": method}
    kind = STRUCTURES[method]
    fields: dict[str, Any] = {"name": "magnitude", "sparsity_type": kind}
    if kind == "2:4":  # along the inputs, as sparse tensor cores need it
        fields["sparsity_axis"] = -2
    if kind == "channels":  # all logits stay
        fields["include"] = kernels[:-1]
    return fields


def train_and_score(config: ConfigDict) -> Row:
    """Train all seeds of a run; return means, spreads and the score of each seed."""
    problem, method = zoo_models.load_problem(config.model), config.method
    options = {"steps": config.steps, "seeds": config.seeds}
    if method.startswith(LAYERWISE):
        layerwise = method.removeprefix(LAYERWISE)
        scores, reached = zoo_training.prune_seeds(problem, layerwise, config.target, **options)
    else:
        settings = settings_of(method, problem.kernels)
        sparsities = (0.5,) if method.endswith("2:4") else SPARSITIES
        scores, reached = zoo_training.train_seeds(
            problem, settings, sparsities, config.target, **options
        )
    reals = np.asarray(scores, np.float64)
    return {
        "score": round(float(reals.mean()), 4),
        "spread": round(float(reals.std()), 4),
        "sparsity": round(float(np.mean(reached)), 5),
        "scores": " ".join(f"{score:.4f}" for score in reals),
    }


def draw(workdir: pathlib.Path, rows: list[Row]) -> None:
    """Draw scores over sparsity, a panel for each family and model, and write `table.md`."""
    draw_scores(workdir / "score.png", rows)
    with write_atomically(workdir / "table.md") as file:
        file.write(table(rows))


def draw_scores(path: pathlib.Path, rows: list[Row]) -> None:
    """Draw a panel for each model and family: scores over sparsity, other families in grey."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, axes = panel_grid(len(models) * len(FAMILIES), len(FAMILIES), (3.4, 3.4))
    panels = [(model, group) for model in models for group in FAMILIES]
    for axis, (model, group) in zip(axes, panels, strict=True):
        shown = [row for row in rows if row["model"] == model]
        _draw_panel(axis, shown, group)
        axis.set(title=f"{model}: {group}", xlabel="sparsity", ylabel=zoo_models.UNITS[model])
    save_figure(figure, path)


def _draw_panel(axis: Axes, rows: list[Row], group: str) -> None:
    """Draw the rows of a model."""
    curves: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows:
        if row["method"] == DENSE:
            axis.axhline(row["score"], color="0.4", ls="--", lw=1)
        else:
            point = (SPARSITIES.index(row["target"]), row["score"], row["spread"])
            curves.setdefault(row["method"], []).append(point)
    number = 0
    for method, points in curves.items():
        at, scores, spreads = zip(*sorted(points), strict=True)
        if family(method) != group:
            axis.plot(at, scores, color="0.88", lw=0.8, zorder=0)
            continue
        style = {**line_style(number), "marker": "osv^Dx"[number % 6], "label": method}
        axis.errorbar(at, scores, spreads, capsize=2, ms=4, lw=1.2, **style)
        number += 1
    axis.set_xticks(range(len(SPARSITIES)), [f"{place:g}" for place in SPARSITIES])
    axis.grid(alpha=0.3)
    if number:
        axis.legend(fontsize=7)


def table(rows: list[Row]) -> str:
    """Return a table: a row for each model and method, its score at each sparsity."""
    titles = ["model", "method", *(f"{100 * target:g} %" for target in SPARSITIES)]
    lines = []
    for model, method in dict.fromkeys((row["model"], row["method"]) for row in rows):
        found = {r["target"]: r for r in rows if (r["model"], r["method"]) == (model, method)}
        cells = [_cell(model, found.get(0.0, found.get(target))) for target in SPARSITIES]
        lines.append([model, method, *cells])
    return markdown_table(titles, lines)


def _cell(model: str, row: Row | None) -> str:
    if row is None:
        return ""
    digits = 1 if model == "digits" else 3
    text = f"{row['score']:.{digits}f} ± {row['spread']:.{digits}f}"
    missed = abs(row["sparsity"] - row["target"]) > 0.05 * (1 - row["target"])
    return f"{text} ({100 * row['sparsity']:.1f} %)" if missed else text


SWEEP = Sweep(zoo_runs, draw, work=train_and_score, score="score", seeds=5)
