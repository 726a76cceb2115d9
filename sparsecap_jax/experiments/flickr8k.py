"""Parts that the sweeps on Flickr8k share: configs, scores, differences to a twin."""

import pathlib
from typing import Any

from ml_collections import ConfigDict

from sparsecap_jax.commands.compare import compare_captions
from sparsecap_jax.commands.console import folder
from sparsecap_jax.commands.evaluate import evaluate_run
from sparsecap_jax.data.datasets import Dataset
from sparsecap_jax.evaluation.metrics import METRICS
from sparsecap_jax.evaluation.plots import table_column
from sparsecap_jax.experiments.sweep_tables import Row, number_in
from sparsecap_jax.runs.overrides import load_config

WORDS = {"up_down": "", "ort": "ort"}
_SCORES = ("CIDEr", "Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L")
_TEXT = ("words", "vocabulary", "repetition")


def flickr8k_config(model: str, words: str, seed: int) -> ConfigDict:
    """Return the config of `configs/flickr8k.py` for a model."""
    arg = ",".join(filter(None, (WORDS[model], words)))
    config = load_config(folder("configs") / "flickr8k.py", arg)
    config.seed = seed
    return config


def scores(
    directory: pathlib.Path, dataset: Dataset, twin: pathlib.Path | None, split: str = "test"
) -> Row:
    """Score a split, and compare its captions with those of a twin, another run.

    Returns:
        Scores of the captions with the 95% interval of CIDEr; `difference`, CIDEr less the twin's,
        with its 95% interval over photos drawn with replacement and `p`, that of the sign-flip
        test (None without a twin); and figures of the text. Columns of "val" begin with `dev_`.
    """
    options: dict[str, Any] = {"metrics": METRICS, "report": lambda line: None}
    result = evaluate_run(directory, split=split, dataset=dataset, **options)
    row = {name: result[name] for name in _SCORES}
    row["CIDEr_low"], row["CIDEr_high"] = result["CIDEr_95%"]
    row |= _difference(directory, twin, split) | {name: result["text"][name] for name in _TEXT}
    if split == "val":
        return {f"dev_{name}": value for name, value in row.items()}
    return row | {name: result[name] for name in ("sparsity", "nonzeros", "bytes", "images")}


def dev_curve(directory: pathlib.Path) -> str:
    """Return CIDEr of a run's validations, which says whether it had stopped to rise."""
    _, values = table_column(directory / "validation.csv", "CIDEr")
    return " ".join(f"{cider:.4f}" for cider in values)


def significant(rows: list[Row], column: str, *, below: bool) -> str:
    """Return how many rows have the 95% interval of a difference below 0, or above it."""
    ends = [number_in(row, f"{column}_{'high' if below else 'low'}") for row in rows]
    compared = [end for end in ends if end is not None]
    hits = sum(end < 0 if below else end > 0 for end in compared)
    return f"{hits} of {len(compared)}" if compared else ""


def _difference(directory: pathlib.Path, twin: pathlib.Path | None, split: str) -> Row:
    names = ("difference", "difference_low", "difference_high", "p")
    if twin is None:
        return dict.fromkeys(names)
    options: dict[str, Any] = {"metrics": ("CIDEr",), "report": lambda line: None}
    result = compare_captions([directory, twin], split=split, **options)
    cell = result["differences"][0]["CIDEr"]
    return dict(zip(names, (cell["difference"], *cell["95%"], cell["p_sign_flip"]), strict=True))
