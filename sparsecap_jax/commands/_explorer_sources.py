"""Results that the caption explorer shows: found, read, and scored where nobody has yet."""

import dataclasses
import glob
import os
import pathlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from sparsecap_jax.data.datasets import Dataset
from sparsecap_jax.errors import DataError, SparsecapError
from sparsecap_jax.evaluation.caption_files import load_captions
from sparsecap_jax.evaluation.metrics import FAST_METRICS, judge_captions
from sparsecap_jax.evaluation.result_files import (
    PER_IMAGE,
    load_attention,
    load_corpus_scores,
    load_image_scores,
)
from sparsecap_jax.files import absent
from sparsecap_jax.runs.finished import MODEL_SUFFIX

_CAPTIONS = "captions.json"
_SPLITS = ("test", "val")


@dataclasses.dataclass(frozen=True)
class Results:
    """A file of captions and what made it.

    Attributes:
        model: name to show.
        split: "test" or "val"; "" where nothing says so.
        captions: the file.
        run: directory of the run, or None.
    """

    model: str
    split: str
    captions: pathlib.Path
    run: pathlib.Path | None


@dataclasses.dataclass
class Model:
    """Captions of one model.

    Attributes:
        name: name to show.
        captions: text by image id.
        scores: of each image by metric.
        attention: `[W][R]` of each image, see `load_attention`.
        corpus: scores of all images and sizes of the model, a dict for each file of results.
    """

    name: str
    captions: dict[Hashable, str] = dataclasses.field(default_factory=dict)
    scores: dict[Hashable, dict[str, float | None]] = dataclasses.field(default_factory=dict)
    attention: dict[Hashable, list[list[float]]] = dataclasses.field(default_factory=dict)
    corpus: list[dict[str, Any]] = dataclasses.field(default_factory=list)


def find_all_results(sources: Sequence[str | pathlib.Path]) -> list[Results]:
    """Return the results of all sources, models named by the parts of their paths that differ.

    Raises:
        DataError: there are no sources, one comes twice, or one has no results.
    """
    paths = [pathlib.Path(os.path.abspath(source)) for source in sources]
    paths = [path.parent if path.name == _CAPTIONS else path for path in paths]
    if not paths or len({*paths}) < len(paths):
        listed = " ".join(map(str, sources))
        raise DataError(f"sources {listed!r}; expected one or more, each once")
    results = []
    for name, path in zip(_names(paths), paths, strict=True):
        results += _find_results(name, path)
    return results


def _names(paths: Sequence[pathlib.Path]) -> list[str]:
    """Return paths without the folders that all begin, or end, with."""
    common = os.path.commonpath([path.parent for path in paths])
    whole = [os.path.relpath(path, common).replace(os.sep, "/") for path in paths]
    plain = [path.with_suffix("") if path.suffix[:5] == ".json" else path for path in paths]
    parts = [path.relative_to(common).parts for path in plain]
    same = 0
    while same < min(map(len, parts)) - 1 and len({names[-same - 1] for names in parts}) == 1:
        same += 1
    same = same if len(parts) > 1 else 0
    short = ["/".join(names[: len(names) - same]) for names in parts]
    return short if all(short) and len({*short}) == len(short) else whole


def _find_results(name: str, source: pathlib.Path) -> list[Results]:
    if source.is_file() and source.suffix != MODEL_SUFFIX:
        return [Results(name, "", source, None)]
    if (source / _CAPTIONS).is_file():
        split = source.name.partition("_")[0]
        run = source.parent if (source.parent / "config.json").is_file() else None
        return [Results(name, split if split in _SPLITS else "", source / _CAPTIONS, run)]
    # Results of a model file, or of a captioner of the package by its name, lie next to it.
    inside = source.is_dir()
    folder, start = (source, "") if inside else (source.parent, f"{source.name}_")
    patterns = [f"{glob.escape(start)}{split}_*/{_CAPTIONS}" for split in _SPLITS]
    files = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    if not files:
        made = "sparsecap evaluate --checkpoint makes them"
        expected = f"a file of captions, or results of a run ({made})"
        found = f"{source}: no captions; expected {expected}"
        raise DataError(found if source.exists() else absent(source, expected))
    run = source if (source / "config.json").is_file() else None
    parts = [path.parent.name.removeprefix(start).partition("_") for path in files]
    several = len({split for split, _, _ in parts}) < len(parts)  # of one split
    return [
        Results(f"{name} {search}" if several else name, split, path, run)
        for (split, _, search), path in zip(parts, files, strict=True)
    ]


def open_dataset(run: pathlib.Path, changes: Sequence[str]) -> tuple[Dataset, bool]:
    """Return the dataset of a run, with `changes`, and whether its features have boxes."""
    from sparsecap_jax.data.datasets import load_dataset
    from sparsecap_jax.runs.directory import load_config  # it loads JAX
    from sparsecap_jax.runs.overrides import change_data

    # Each image is read once, so that nothing is worth keeping.
    config = change_data(load_config(run), [*changes, "data.cache_min_free_ram=1.0"]).data
    try:
        return load_dataset(config, need_boxes=True), True
    except SparsecapError:
        return load_dataset(config), False


def read_models(
    results: Sequence[Results],
    references: Mapping[Hashable, Sequence[str]],
    report: Callable[[str], None],
) -> list[Model]:
    """Read captions, scores and attention; results of one model in several splits are joined.

    Scores are computed anew, without METEOR, where they are missing or of other captions.

    Raises:
        DataError: a file is missing or broken.
    """
    models: dict[str, Model] = {}
    for found in results:
        model = models.setdefault(found.model, Model(found.model))
        texts = load_captions(found.captions)
        scores, corpus = _scores(found.captions, texts, references, report)
        model.captions |= texts
        model.scores |= scores
        model.attention |= load_attention(found.captions)
        model.corpus.append({"split": found.split, "images": len(texts), **corpus})
    return list(models.values())


def _scores(
    path: pathlib.Path,
    texts: Mapping[Hashable, str],
    references: Mapping[Hashable, Sequence[str]],
    report: Callable[[str], None],
) -> tuple[dict[Hashable, dict[str, float | None]], dict[str, Any]]:
    """Return the scores of each image and of all."""
    table, total = (path.with_name(name) for name in (PER_IMAGE, "scores.json"))
    if table.is_file() and total.is_file():
        captions, scores = load_image_scores(table)
        if captions == texts:
            return scores, load_corpus_scores(total)
        report(f"{table}: of other captions than {path.name}; scored anew")
    judges = {image: list(references.get(image, ())) for image in texts}
    if not all(judges.values()):
        report(f"{path}: images without references; no scores (--references=FILE names some)")
        return {}, {}
    judged = judge_captions(texts, judges, FAST_METRICS)
    return judged.images, dict(judged.scores)
