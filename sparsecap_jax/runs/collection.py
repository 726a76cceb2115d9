"""Figures of runs, read without running them: finished, unfinished, imported, or one file.

Folders of results of the PyTorch reference are read by `reference_results`.
"""

import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from sparsecap_jax.errors import CheckpointError, DataError
from sparsecap_jax.evaluation.collected import (
    VALIDATION,
    Collected,
    Row,
    number,
    score_figures,
    text_figures,
)
from sparsecap_jax.evaluation.plots import table_column
from sparsecap_jax.evaluation.sparsity_report import density
from sparsecap_jax.files import absent, read_csv, read_settings
from sparsecap_jax.model_files import ModelFile
from sparsecap_jax.pruning.paths import by_path, nest, select, show
from sparsecap_jax.pruning.similarity import layer_distances, layer_stacks
from sparsecap_jax.pruning.summary import (
    ALL,
    PRUNABLE,
    by_group,
    group_of,
    summarize,
    weight_counts,
)
from sparsecap_jax.runs.finished import (
    CONFIG,
    IMPORTED,
    MODEL_SUFFIX,
    SUMMARY,
    file_settings,
    finished_weights,
    of_other_weights,
)
from sparsecap_jax.runs.logs import TABLES
from sparsecap_jax.runs.published import resolve_run
from sparsecap_jax.runs.reference_results import imported_scores, is_reference, read_reference
from sparsecap_jax.runs.weights import load_weights
from sparsecap_jax.types import PyTree

SCORES = "scores.json"
DENSE, PRUNED = "dense", "pruned"
_MOST_FOLDERS = 100_000
_OF_COCO = ("karpathy", "coco_json", "coco_online", "tfds")  # datasets in the forms of COCO
_SPARSE = 0.01  # below it, zeros of a model without a pruner are chance


def find_runs(source: str | pathlib.Path) -> list[pathlib.Path]:
    """Return the run that `source` is, or the runs and model files below it, in order of names.

    Args:
        source: a run, a model file, a folder of results of the reference, a folder that holds any
            of them at any depth, or the name of a captioner that comes with the package.

    Raises:
        CheckpointError: there is none.
    """
    path = resolve_run(source)
    if path.is_file():
        if path.suffix != MODEL_SUFFIX:
            raise CheckpointError(f"{path}: no model; expected a run, or a file *{MODEL_SUFFIX}")
        return [path]
    if not path.is_dir():
        raise CheckpointError(absent(path, "a run"))
    found = [path] if is_run(path) else list(_below(path))
    if not found:
        expected = f"{CONFIG} of a run, or runs in folders below it"
        raise CheckpointError(f"{path}: holds no run; expected {expected}")
    return found


def is_run(path: pathlib.Path) -> bool:
    """Return whether a folder is a run, or a folder of results of the reference."""
    return (path / CONFIG).is_file() or finished_weights(path) is not None


def _below(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    for count, (name, folders, files) in enumerate(os.walk(folder)):
        if count >= _MOST_FOLDERS:
            raise CheckpointError(f"{folder}: over {_MOST_FOLDERS} folders; expected some runs")
        path = pathlib.Path(name)
        if is_run(path):
            folders.clear()
            yield path
        else:
            folders[:] = sorted(one for one in folders if not one.startswith("."))
            links = (path / one for one in folders if (path / one).is_symlink())
            yield from (link for link in links if is_run(link))  # which the walk leaves out
            yield from (path / one for one in sorted(files) if one.endswith(MODEL_SUFFIX))


def read_run(run: pathlib.Path, name: str, given: str | pathlib.Path | None = None) -> Collected:
    """Read the figures of a run, a model file, or a folder of results of the reference.

    Args:
        run: see `find_runs`.
        name: what to call it.
        given: how the user named it, where that differs: results of captioners of the package and
            of model files lie next to that name.

    Raises:
        SparsecapError: a file is missing or damaged.
    """
    if run.is_file():
        with ModelFile(run) as file:
            settings = file_settings(run, file)[0]
        return _read(run, name, settings, _results_next_to(pathlib.Path(given or run)))
    settings = read_settings(run / CONFIG)
    if is_reference(settings):
        return read_reference(run, name, settings)
    files = {path.parent.name: path for path in sorted(run.glob(f"*/{SCORES}"))}
    if given is not None and pathlib.Path(given).absolute() != run.absolute():
        files |= _results_next_to(pathlib.Path(given))
    return _read(run, name, settings, files)


def _results_next_to(run: pathlib.Path) -> dict[str, pathlib.Path]:
    """Return files of scores by the name of their results, see `published.results_folder`."""
    start = f"{run.name}_"
    folders = [path for path in sorted(run.parent.iterdir()) if path.name.startswith(start)]
    files = {path.name.removeprefix(start): path / SCORES for path in folders}
    return {name: path for name, path in files.items() if path.is_file()}


def _read(
    run: pathlib.Path, name: str, settings: Mapping[str, Any], files: Mapping[str, pathlib.Path]
) -> Collected:
    where = run if run.is_file() else run / CONFIG
    sections = [settings.get(section, {}) for section in ("model", "pruner", "tokenizer")]
    if not all(isinstance(section, Mapping) for section in sections):
        raise DataError(f"{where}: expected sections model, pruner and tokenizer")
    model, pruner, tokenizer = (str(section.get("name") or "")[:80] for section in sections)
    result = Collected(name, run, {"status": "", "model": model, "method": pruner})
    result.other_data = _other_data(settings.get("data"))
    weights = finished_weights(run)
    words = None
    if weights is not None:
        stored = load_weights(weights)
        params = stored["params"]
        weigh(result, params, stored["masks"])
        result.figures["bytes"] = weights.stat().st_size
        words = _vocabulary(params) if tokenizer == "word" else None
    result.target = number(sections[1], "sparsity", f"{where}: pruner")
    sparsity = result.figures.get("sparsity")
    if pruner in ("", "none"):
        pruned = sparsity is not None and sparsity >= _SPARSE
        result.figures["method"] = PRUNED if pruned else DENSE
        result.target = None
    if not result.target and result.figures["method"] != DENSE and sparsity is not None:
        result.target = round(sparsity, 3)  # imported, or the masks of another run
    logged = {} if run.is_file() else _read_logs(result)
    result.figures["status"] = _status(run, weights, logged)
    if weights is None and logged.get("sparsity"):
        result.figures["sparsity"] = logged["sparsity"][0]
    if (run / IMPORTED).is_file():
        result.results |= imported_scores(run / IMPORTED)
    for folder, path in files.items():
        other = weights is not None and of_other_weights(path, params)
        label = f"{folder}, of other weights" if other else folder
        result.results[label] = _scores(path, words)
    if validation := logged.get(VALIDATION):
        result.results[VALIDATION] = validation
    return result


def _other_data(section: Any) -> str:
    """Return the dataset that a section `data` names, unless it is, or may be, COCO."""
    if not isinstance(section, Mapping):
        return ""
    name, folder = (str(section.get(key) or "")[:200] for key in ("name", "dir"))
    if name in _OF_COCO and (not folder or "coco" in folder.lower()):
        return ""
    return f"{name} ({pathlib.Path(folder).name})" if name in _OF_COCO else name


def weigh(result: Collected, params: PyTree, masks: PyTree) -> None:
    """Add counts, masks, density and distances of layers of finished weights to `result`.

    Counts and sparsity are those of `pruning.summary.weight_counts`.
    """
    leaves = {show(path): np.asarray(leaf) for path, leaf in by_path(params).items()}
    kept = {path: by_path(params)[path] != 0 for path in select(params)}
    rows = summarize(params, nest(kept))
    totals = {row["tensor"]: row for row in rows}
    result.figures |= weight_counts(params, masks)
    result.figures["parameters"] = totals[ALL]["size"]
    result.tensors = [row for row in rows if row["prunable"] and row["tensor"] != PRUNABLE]
    sums = by_group(result.tensors, "nonzeros")
    result.figures |= {f"{group}_nonzeros": total for group, total in sums.items()}
    sums = by_group(rows, "size")
    result.figures |= {f"{group}_parameters": total for group, total in sums.items()}
    result.masks = {show(path): np.packbits(mask) for path, mask in kept.items()}
    values = np.concatenate([leaves[show(path)][mask] for path, mask in kept.items()])
    values = values[np.isfinite(values)]
    result.density = density(values) if values.size else None
    result.layers = {
        stack: layer_distances(layers) for stack, layers in layer_stacks(leaves).items()
    }


def _vocabulary(params: PyTree) -> int | None:
    """Return the number of words of a model whose tokens are words."""
    leaves = by_path(params)
    embeddings = [path for path in leaves if group_of(show(path)) == "embedding"]
    return max((leaves[path].shape[0] for path in embeddings), default=None)


def _read_logs(result: Collected) -> dict[str, Any]:
    """Return validation, last step and number of steps of a run directory's logs."""
    run = result.directory
    found: dict[str, Any] = {}
    result.curves = [table for table in TABLES if (run / f"{table}.csv").is_file()]
    if "train" in result.curves:
        steps, rates = table_column(run / "train.csv", "images_per_second")
        finite = [rate for rate in rates if np.isfinite(rate)]
        if finite:
            result.figures["images_per_second"] = float(np.median(finite))
        found["step"] = max(steps, default=0)
        found["sparsity"] = table_column(run / "train.csv", "sparsity")[1][-1:]
    if (run / SUMMARY).is_file():
        summary = read_settings(run / SUMMARY, "figures")
        validation = summary.get("validation")
        if isinstance(validation, Mapping):
            found[VALIDATION] = score_figures(validation, f"{run / SUMMARY}: validation")
    elif "validation" in result.curves:
        found |= _best_validation(run / "validation.csv", found.get("step", 0))
    return found


def _best_validation(path: pathlib.Path, step: int) -> dict[str, Any]:
    """Return the scores of the best validation so far, by CIDEr, and the last step."""
    steps, scores = table_column(path, "CIDEr")
    found: dict[str, Any] = {"step": max([step, *steps])}
    if scores:
        best = steps[int(np.nanargmax(scores))] if np.isfinite(scores).any() else steps[-1]
        row = next(row for row in read_csv(path) if row.get("step") == str(best))
        numbers = {key: float(value) for key, value in row.items() if key and _is_score(value)}
        found[VALIDATION] = score_figures(numbers, path)
    return found


def _is_score(text: Any) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except (TypeError, ValueError):
        return False


def _status(run: pathlib.Path, weights: pathlib.Path | None, logged: Mapping[str, Any]) -> str:
    if run.is_file():
        return "model file"
    if weights is None:
        step = logged.get("step")
        return f"unfinished, step {step}" if step else "unfinished"
    return "imported" if (run / IMPORTED).exists() else "finished"


def _scores(path: pathlib.Path, words: int | None) -> Row:
    """Read a file of scores."""
    content = read_settings(path, "scores")
    text = content.get("text") or {}
    if not isinstance(text, Mapping):
        raise DataError(f"{path}: text is {text!r:.80}; expected figures")
    return {**score_figures(content, path), **text_figures(text, f"{path}: text", words)}
