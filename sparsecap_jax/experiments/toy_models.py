"""Every architecture on the toy scenes, with its config's `tiny` variant (docs/models.md).

    sparsecap sweep --sweep=toy_models --workdir=runs/toy_models

Along with the usual scores, the table reports how often captions state the right spatial relation.
The transformer and the ORT are also trained on scenes that only boxes locate: the direction of
things ("toy_boxes"), or the nearest one ("toy_near", with both of the ORT's geometries).
"""

import pathlib
import re

import numpy as np

from sparsecap_jax.data.datasets import Dataset
from sparsecap_jax.data.toy_scenes import read_manifest
from sparsecap_jax.evaluation.tables import markdown_table
from sparsecap_jax.evaluation.toy_relations import nearest_scores, relation_scores
from sparsecap_jax.experiments import sweeps
from sparsecap_jax.experiments.sweep_tables import Row
from sparsecap_jax.experiments.sweeps import Sweep, SweepRun
from sparsecap_jax.files import read_json, write_atomically
from sparsecap_jax.runs.overrides import load_config

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
MODELS = {
    "Soft-Attention": "soft_attention.py:tiny",
    "Soft-Attention, GRU": "soft_attention.py:gru,tiny",
    "Up-Down": "up_down.py:tiny",
    "Transformer": "transformer.py:tiny",
    "ORT": "ort.py:tiny",
    "ACORT": "acort.py:tiny",
}
PLAIN = ", plain geometry"
# Scenes that boxes alone locate, and the models trained on them.
BOXES_MATTER = {
    "toy_boxes": ("Transformer", "ORT"),
    "toy_near": ("Transformer", "ORT", "ORT" + PLAIN),
}
COLUMNS = {
    "nonzeros": "prunable weights",
    "CIDEr": "CIDEr",
    "Bleu_4": "BLEU-4",
    "relation_accuracy": "relation right",
    "axis_accuracy": "axis right",
    "nearest_accuracy": "nearest right",
    "seconds": "seconds",
}


def toy_runs(seeds: int) -> list[SweepRun]:
    """Return the runs of all models, seed by seed."""
    runs = []
    chosen = [(model, "toy") for model in MODELS]
    chosen += [(model, scenes) for scenes, models in BOXES_MATTER.items() for model in models]
    for seed in range(seeds):
        for model, scenes in chosen:
            path, _, words = MODELS[model.removesuffix(PLAIN)].partition(":")
            config = load_config(CONFIGS / path, words)
            config.seed = seed
            if model.endswith(PLAIN):
                config.model.box_embedding = "plain"
            config.data.name = scenes
            if scenes == "toy_near":
                config.data.seq_per_img = 1  # an image has one caption
                config.train.steps = 3000  # geometry is learnt last
            folder = re.sub(r"\W+", "_", model.lower()) + scenes.removeprefix("toy")
            labels = {"scenes": scenes, "model": model, "seed": seed}
            runs.append(SweepRun(f"{folder}/seed_{seed}", labels, config))
    return runs


def evaluate(directory: pathlib.Path, dataset: Dataset, twin: pathlib.Path | None = None) -> Row:
    """Score the test split, and the relations or nearest things that captions state."""
    row = sweeps.score_test_split(directory, dataset)
    file = directory / f"test_beam_{row['beam_size']}" / "captions.json"
    captions = {entry["image_id"]: entry["caption"] for entry in read_json(file)}
    scenes = dataset.images.parent
    near = (read_manifest(scenes) or {}).get("near", False)
    return {**row, **(nearest_scores if near else relation_scores)(captions, scenes)}


def draw(workdir: pathlib.Path, rows: list[Row]) -> None:
    """Write `table.md`: means over seeds, and standard deviations where there are several."""
    table = []
    for scenes, model in dict.fromkeys((row["scenes"], row["model"]) for row in rows):
        seeds = [row for row in rows if (row["scenes"], row["model"]) == (scenes, model)]
        cells = [_cell([row[column] for row in seeds if column in row]) for column in COLUMNS]
        table.append([scenes, model, *cells])
    with write_atomically(workdir / "table.md") as file:
        file.write(markdown_table(["scenes", "model", *COLUMNS.values()], table))


def _cell(values: list[float | int]) -> str:
    if not values:
        return ""
    mean = np.mean(values)
    if mean >= 10:
        return f"{mean:,.0f}"
    return f"{mean:.3f} ± {np.std(values):.3f}" if len(values) > 1 else f"{mean:.3f}"


SWEEP = Sweep(toy_runs, draw, evaluate)
