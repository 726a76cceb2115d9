"""Every architecture on the toy scenes, with its config's `tiny` variant (docs/models.md).

    python launch/sweep.py --sweep=toy_models --workdir=runs/toy_models

Beside the usual scores stands how often captions tell the right spatial relation.
"""

import pathlib

import numpy as np
from ml_collections import ConfigDict

from sparsecap_jax.data.datasets import Dataset
from sparsecap_jax.demo import load_config
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.evaluation.toy_relations import relation_scores
from sparsecap_jax.files import read_json, write_atomically
from sparsecap_jax.sweeps import Row, Sweep, SweepRun, score_test_split

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
MODELS = {
    "Soft-Attention": "soft_attention.py:tiny",
    "Soft-Attention, GRU": "soft_attention.py:gru,tiny",
    "Up-Down": "up_down.py:tiny",
    "Transformer": "transformer.py:tiny",
    "ORT": "ort.py:tiny",
    "ACORT": "acort.py:tiny",
}
COLUMNS = {
    "nonzeros": "parameters",
    "CIDEr": "CIDEr",
    "Bleu_4": "BLEU-4",
    "ROUGE_L": "ROUGE-L",
    "relation_accuracy": "relations right",
    "seconds": "seconds",
}


def toy_runs(seeds: int) -> list[SweepRun]:
    """All models, seed by seed."""
    return [
        SweepRun(f"{_slug(model)}/seed_{seed}", {"model": model, "seed": seed}, _config(file, seed))
        for seed in range(seeds)
        for model, file in MODELS.items()
    ]


def evaluate(directory: pathlib.Path, dataset: Dataset) -> Row:
    """Scores on the test split, and the relations told there."""
    row = score_test_split(directory, dataset)
    file = directory / f"test_beam_{row['beam_size']}" / "captions.json"
    captions = {entry["image_id"]: entry["caption"] for entry in read_json(file)}
    return {**row, **relation_scores(captions, dataset.images.parent)}


def draw(workdir: pathlib.Path, rows: list[Row]) -> None:
    """Write `table.md`: means over seeds, and standard deviations where there are several."""
    lines = [
        "| " + " | ".join(["model", *COLUMNS.values()]) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        seeds = [row for row in rows if row["model"] == model]
        cells = [_cell([row[column] for row in seeds]) for column in COLUMNS]
        lines.append("| " + " | ".join([model, *cells]) + " |")
    with write_atomically(workdir / "table.md") as file:
        file.write("\n".join(lines) + "\n")


def _cell(values: list[float]) -> str:
    mean = np.mean(values)
    if mean >= 10:
        return f"{mean:,.0f}"
    return f"{mean:.3f} ± {np.std(values):.3f}" if len(values) > 1 else f"{mean:.3f}"


def _slug(model: str) -> str:
    return model.lower().replace(", ", "_").replace("-", "_")


def _config(file: str, seed: int) -> ConfigDict:
    path, _, arg = file.partition(":")
    if not (CONFIGS / path).exists():
        raise ConfigError(f"{CONFIGS / path}: no such config; run the sweep in a checkout")
    config = load_config(CONFIGS / path, arg)
    config.seed = seed
    return config


SWEEP = Sweep(toy_runs, draw, evaluate)
