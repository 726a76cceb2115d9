"""Folders of results of the PyTorch reference: `config.json`, `test_beam_2/scores.csv` and so on.

A folder of a training holds `config.json`, the weights, `sparsities.csv` of a pruned model,
`model_params.json` (in later versions), and for each split and beam size a folder with `scores.csv`
(a row for each checkpoint) and `caption_STEP.json`.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

from sparsecap_jax.errors import DataError
from sparsecap_jax.evaluation.caption_files import load_captions
from sparsecap_jax.evaluation.collected import (
    Collected,
    Row,
    number,
    score_figures,
    text_figures,
)
from sparsecap_jax.evaluation.metrics import ALL_METRICS
from sparsecap_jax.files import (
    LIST_BYTES,
    foreign_errors,
    read_bytes,
    read_csv,
    read_json,
    read_settings,
)
from sparsecap_jax.pruning.summary import by_group

STATUS = "reference"
_WEIGHTS = ("model_best_pruned_sparse.pth", "model_best_pruned.pth", "model_best.pth")
_MASK = "_pruning_mask"
_SPLITS = ("test_", "val_")
_MODELS = {"up_down_lstm": "up_down"}  # ours, where the name differs
_TRAINING = "tokenizer/train_captions.txt"


def is_reference(settings: Mapping[str, Any]) -> bool:
    """Return whether a `config.json` is of the reference."""
    return isinstance(settings.get("caption_model"), str)


def read_reference(folder: pathlib.Path, name: str, settings: Mapping[str, Any]) -> Collected:
    """Read figures of a folder of results of the reference.

    Validation is that of the step that was tested; without a test, of the best CIDEr.

    Raises:
        DataError: a file is damaged.
    """
    where = folder / "config.json"
    method = settings.get("prune_type") or "dense"
    model = settings["caption_model"].removesuffix("_prune")
    model = _MODELS.get(model, model)[:80]
    figures: Row = {"status": STATUS, "model": model, "method": str(method)[:80]}
    result = Collected(name, folder, figures)
    data = str(settings.get("dataset") or "")[:80]
    result.other_data = "" if "coco" in data else data
    if method != "dense":
        result.target = number(settings, "prune_sparsity_target", where)
    _add_sizes(result)
    words = None
    if settings.get("tokenizer") == "word":
        words = number(settings, "vocab_size", where)
    files = {path.parent.name: path for path in sorted(folder.glob("*/scores.csv"))}
    of_splits = {name: path for name, path in files.items() if name.startswith(_SPLITS)}
    chosen = _chosen({name: _scores(path) for name, path in of_splits.items()})
    for folder_name, (step, row) in chosen.items():
        captions = folder / folder_name / f"caption_{step}.json"
        text = _text(captions, folder / _TRAINING, words) if captions.is_file() else {}
        result.results[folder_name] = {**row, **text}
    return result


def imported_scores(path: pathlib.Path) -> dict[str, Row]:
    """Read the scores that an imported run came with, from its `imported.json`.

    Raises:
        DataError: the file is damaged.
    """
    content = read_json(path, "notes of an import", max_bytes=LIST_BYTES)
    with foreign_errors(f"{path}: scores: expected those of each folder and step"):
        folders = {
            name: {step: score_figures(row, f"{path}: {name}") for step, row in steps.items()}
            for name, steps in content.get("scores", {}).items()
            if name.startswith(_SPLITS)
        }
    return {name: row for name, (_, row) in _chosen(folders).items()}


def _chosen(folders: Mapping[str, Mapping[str, Row]]) -> dict[str, tuple[str, Row]]:
    """Return for each folder step and scores: of tests the last, of validation the tested one."""
    tested: set[str] = set()
    found: dict[str, tuple[str, Row]] = {}
    for name in sorted(folders, key=lambda name: (not name.startswith("test_"), name)):
        steps = folders[name]
        if name.startswith("test_"):
            tested.update(list(steps)[-1:])
            choice = list(steps)[-1:]
        else:
            choice = [step for step in steps if step in tested][-1:] or _best(steps)
        if choice:
            found[name] = (choice[0], steps[choice[0]])
    return found


def _add_sizes(result: Collected) -> None:
    """Add the size of the weights' file, sparsities, and parameters by group."""
    folder, figures = result.directory, result.figures
    weights = [folder / name for name in _WEIGHTS if (folder / name).is_file()]
    if weights:
        figures["bytes"] = weights[0].stat().st_size
    for path in (path for path in [folder / "sparsities.csv"] if path.is_file()):
        for row in read_csv(path)[-1:]:
            with foreign_errors(f"{path}: expected sparsity, nnz, and one column a tensor"):
                values = {key: float(value) for key, value in row.items()}
                figures |= {"sparsity": values["sparsity"], "nonzeros": int(values["nnz"])}
            names = [key for key in values if key.endswith(_MASK)]
            result.tensors = [
                {"tensor": key.removesuffix(_MASK), "sparsity": values[key]} for key in names
            ]
    for path in (path for path in [folder / "model_params.json"] if path.is_file()):
        content = read_settings(path, "numbers of parameters")
        figures["parameters"] = number(content, "total", path)
        parts = content.get("breakdown") or {}
        if not isinstance(parts, Mapping):
            raise DataError(f"{path}: breakdown is {parts!r:.80}; expected counts of tensors")
        rows = [{"tensor": key, "size": number(parts, key, path) or 0} for key in parts]
        sums = by_group(rows, "size")
        figures |= {f"{group}_parameters": total for group, total in sums.items()}


def _scores(path: pathlib.Path) -> dict[str, Row]:
    """Read the scores of each step of `scores.csv`."""
    rows = {}
    for row in read_csv(path):
        step = row.get("Step") or ""
        if not re.fullmatch(r"\d{1,18}", step):
            raise DataError(f"{path}: Step is {step!r:.80}; expected a number")
        with foreign_errors(f"{path}: step {step}: expected scores"):
            values = {name: float(row[name]) for name in ALL_METRICS if row.get(name)}
        rows[step] = score_figures(values, f"{path}: step {step}")
    return rows


def _best(steps: Mapping[str, Row]) -> list[str]:
    """Return the step of the best CIDEr, if there is one."""
    scored = {step: row["CIDEr"] for step, row in steps.items() if "CIDEr" in row}
    return [max(scored, key=scored.__getitem__)] if scored else []


def _text(path: pathlib.Path, training: pathlib.Path, words: int | None) -> Row:
    """Return figures of a file of captions; novel are those that no training caption equals."""
    captions = [*load_captions(path).values()]
    tokens = [caption.split() for caption in captions]
    used = {word for row in tokens for word in row}
    found: Row = {"words": sum(map(len, tokens)) / len(tokens), "vocabulary": len(used)}
    if training.is_file():
        with foreign_errors(f"{training}: not text in UTF-8"):
            known = {*read_bytes(training, "captions").decode("utf-8").splitlines()}
        found["copied"] = sum(caption in known for caption in captions) / len(captions)
    return text_figures(found, path, words)
