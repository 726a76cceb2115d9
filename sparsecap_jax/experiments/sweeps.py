"""Experiments of many runs (`sparsecap sweep`), by name; `sweep_runner` trains and scores them.

A sweep is a list of runs and a way to draw their results: `SWEEP` of a module of this folder, or
one of its `SWEEPS`.
"""

import dataclasses
import functools
import importlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from sparsecap_jax.commands.evaluate import evaluate_run
from sparsecap_jax.data.datasets import Dataset
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.evaluation.metrics import FAST_METRICS, METRICS
from sparsecap_jax.experiments.sweep_tables import Row
from sparsecap_jax.runs.recipes import TINY_UP_DOWN, make_config

_ALONE = (
    *("flickr8k_pruners", "flickr8k_scst", "pruning_zoo"),
    *("toy_models", "toy_pruners", "toy_scst"),
)
_OF_PAPERS = (
    *("up_down", "ort", "soft_attention_lstm", "soft_attention_gru", "acort"),
    *("up_down_scst", "ort_scst", "acort_scst"),
)
# Modules by the names of their sweeps.
SWEEPS = {name: name for name in _ALONE} | {f"coco_{name}": "papers" for name in _OF_PAPERS}
_COMMITTED = pathlib.Path(__file__).parents[2] / "docs" / "results"


@dataclasses.dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
        name: its folder below the sweep's: `up_down/supermask/0.95/seed_0`.
        labels: its setting, the first columns of the table.
        config: its config.
        init_from: name of an earlier run of the sweep to start from (`config.train.init_from`).
        twin: name of an earlier run with whose captions its own are compared.
    """

    name: str
    labels: Mapping[str, Any]
    config: ConfigDict
    init_from: str = ""
    twin: str = ""


def toy_config(seed: int, *words: str, **recipe: Any) -> ConfigDict:
    """Return a config on the toy scenes, by default of a small Up-Down; see `make_config`."""
    recipe = {"model": "up_down", "tiny": TINY_UP_DOWN, "weight_scale": 0.5, **recipe}
    arg = ",".join(["tiny", *filter(None, words)])
    config = make_config(arg, fields={}, pruned={}, optimizer={}, **recipe)
    config.seed = seed
    return config


def score_test_split(
    directory: pathlib.Path,
    dataset: Dataset,
    twin: pathlib.Path | None = None,
    metrics: Sequence[str] = FAST_METRICS,
    tokenizer: str = "python",
) -> Row:
    """Score the test split, by default by all metrics but METEOR, and count the weights."""
    row = evaluate_run(
        directory,
        dataset=dataset,
        metrics=metrics,
        tokenizer=tokenizer,
        report=lambda line: None,
    )
    return {name: value for name, value in row.items() if name != "text"}


score_all_metrics = functools.partial(score_test_split, metrics=METRICS, tokenizer="")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Runs that belong together.

    Attributes:
        runs: `runs(seeds)` returns the runs for seeds 0..seeds-1 in order; a run comes after those
            that it needs.
        draw: `draw(workdir, rows)` draws the finished rows into the sweep's folder.
        evaluate: `evaluate(run directory, dataset, that of its twin or None)` returns the columns
            that follow the labels.
        work: for runs that train no captioner: `work(config)` trains and scores one, and returns
            these columns.
        score: the column that says how good a run is.
        seeds: seeds of each setting where nobody says otherwise.
    """

    runs: Callable[[int], list[SweepRun]]
    draw: Callable[[pathlib.Path, list[Row]], None]
    evaluate: Callable[[pathlib.Path, Dataset, pathlib.Path | None], Row] = score_test_split
    work: Callable[[ConfigDict], Row] | None = None
    score: str = "CIDEr"
    seeds: int = 3


def load_sweep(name: str) -> Sweep:
    """Return the sweep of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in SWEEPS:
        raise ConfigError(f"--sweep is {name!r}; expected one of {', '.join(sorted(SWEEPS))}")
    module = importlib.import_module(f"sparsecap_jax.experiments.{SWEEPS[name]}")
    return module.SWEEP if SWEEPS[name] == name else module.SWEEPS[name]


def committed_table(name: str) -> pathlib.Path | None:
    """Return the table of a sweep in docs/results of the checkout, None where there is none."""
    path = _COMMITTED / f"{name}.csv"
    return path if path.is_file() else None
