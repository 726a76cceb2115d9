"""Comparison of captions (`sparsecap evaluate --compare`): runs, folders of results, files."""

import glob
import os
import pathlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from sparsecap_jax.commands.names import distinct_names
from sparsecap_jax.errors import ConfigError, DataError
from sparsecap_jax.evaluation.caption_files import load_captions, load_references
from sparsecap_jax.evaluation.comparison import changed_words, compare, pool
from sparsecap_jax.evaluation.judging import METRICS, judge_captions
from sparsecap_jax.evaluation.score_files import load_extras
from sparsecap_jax.files import write_json, write_table
from sparsecap_jax.runs.finished import (
    CONFIG,
    MODEL_SUFFIX,
    finished_weights,
    of_other_weights,
)
from sparsecap_jax.runs.published import resolve_run, results_folder
from sparsecap_jax.runs.weights import load_weights
from sparsecap_jax.text import counted

_SHOWN = ("CIDEr", "Bleu_1", "Bleu_4", "METEOR", "ROUGE_L", "SPICE")
_FILE = "captions.json"


def compare_captions(
    sources: Sequence[str | pathlib.Path],
    *,
    references: str | pathlib.Path | None = None,
    output: str | pathlib.Path | None = None,
    split: str = "test",
    metrics: Sequence[str] = METRICS,
    tokenizer: str = "",
    resamples: int = 10_000,
    changes: Sequence[str] = (),
    document_frequency: str | pathlib.Path = "",
    spice_jars: str | pathlib.Path = "",
    report: Callable[[str], None] = print,
    **options: Any,
) -> dict[str, Any]:
    """Compare captions of the same images and report tables.

    Args:
        sources: two or more; files of captions, folders that hold `captions.json`, or runs (see
            `evaluate_run`), whose results of the split are taken, and made where there are none.
            Names that differ in `seed_N` alone are pooled.
        references: file of references; by default those of the first run's dataset.
        output: folder for `comparison.json` and `comparison_per_image.csv`.
        split: of the runs.
        metrics: see `score_captions`.
        tokenizer: see `evaluate_run`.
        resamples: draws of images, and exchanges in the sign-flip test.
        changes: `data.FIELD=VALUE` for the datasets of runs.
        document_frequency: see `evaluate_caption_files`.
        spice_jars: see `score_captions`.
        report: takes one line at a time.
        **options: see `evaluate_run`, for runs that have no results yet.

    Returns:
        See `evaluation.comparison.compare`.

    Raises:
        SparsecapError: a source is missing or broken, or sources have no image in common.
    """
    extras = load_extras((), document_frequency, spice_jars)
    options = {"split": split, "changes": changes, "report": report, **options}
    options |= {"metrics": metrics, "tokenizer": tokenizer}
    captions = {}
    for name, source in zip(_names(sources), sources, strict=True):
        captions[name] = load_captions(_captions_file(source, options))
    if references:
        judges, by_config = load_references(references), "auto"
    else:
        judges, by_config = _of_runs(sources, split, changes)
    shared = [i for i in next(iter(captions.values())) if all(i in c for c in captions.values())]
    missing = [image for image in shared if image not in judges]
    if not shared or missing:
        found = f"{len(shared)} images in common, {len(missing)} of them without references"
        raise DataError(f"{', '.join(captions)}: {found}; expected the same images")
    for name, texts in captions.items():
        if len(texts) > len(shared):
            lacked = counted(len(texts) - len(shared), "image")
            report(f"{name}: left out because others lack them: {lacked}")
    shared_references = {image: judges[image] for image in shared}
    judged = {
        name: judge_captions(
            {image: texts[image] for image in shared},
            shared_references,
            metrics,
            tokenizer or by_config,
            document_frequency=extras.frequency,
            spice_jars=spice_jars,
        )
        for name, texts in captions.items()
    }
    models = pool(judged)
    result = compare(models, resamples=resamples)
    tokens = [*next(iter(judged.values())).references.values()]
    by_name = {model.name: model for model in models}
    for row in result["differences"]:
        row.update(changed_words(by_name[row["first"]], by_name[row["second"]], tokens))
    if extras.corpus:
        result["CIDEr_df"] = extras.corpus
        report(f"CIDEr: document frequencies of {result['CIDEr_df']}, not of the references")
    for line in _lines(result):
        report(line)
    if output is not None:
        folder = pathlib.Path(output)
        write_json(folder / "comparison.json", result)
        write_table(folder / "comparison_per_image.csv", _table(shared, captions, judged))
        report(f"wrote {folder}/comparison.json and comparison_per_image.csv")
    return result


def _names(sources: Sequence[str | pathlib.Path]) -> list[str]:
    """Return the parts of paths that differ, without the names of files that say nothing."""
    paths = [pathlib.Path(os.path.abspath(source)) for source in sources]
    paths = [path.parent if path.name == _FILE else path for path in paths]
    paths = [path.with_suffix("") if path.suffix in (".json", ".jsonl") else path for path in paths]
    if len({*paths}) < len(paths):
        raise ConfigError(f"--compare {' '.join(map(str, sources))}: a source comes twice")
    return distinct_names(paths)


def _captions_file(source: str | pathlib.Path, options: dict[str, Any]) -> pathlib.Path:
    """Return the captions of a source; those of a run are made where there are none."""
    path = pathlib.Path(source)
    if path.is_file() and path.suffix != MODEL_SUFFIX:
        return path
    if (path / _FILE).is_file():
        return path / _FILE
    first = results_folder(source, f"{options['split']}_")
    pattern = f"{glob.escape(first.name)}*/{_FILE}"
    if not any(first.parent.glob(pattern)):
        from sparsecap_jax.commands.evaluate import evaluate_run  # it loads JAX

        evaluate_run(source, **options)
    found = sorted(first.parent.glob(pattern))
    if len(found) > 1:
        names = ", ".join(path.parent.name for path in found)
        raise DataError(f"{source}: results {names}; expected one, or the folder of one")
    weights = finished_weights(resolve_run(source))
    scores = found[0].with_name("scores.json")
    if weights and of_other_weights(scores, load_weights(weights)["params"]):
        reason = "made by other weights than the run has now; run sparsecap evaluate again"
        raise DataError(f"{found[0].parent}: {reason}")
    return found[0]


def _of_runs(
    sources: Sequence[str | pathlib.Path], split: str, changes: Sequence[str]
) -> tuple[dict[Hashable, list[str]], str]:
    """Return the references of the dataset of the first run among the sources, and its tokenizer.

    Results within a run directory are of that run.
    """
    from sparsecap_jax.data.datasets import load_dataset
    from sparsecap_jax.runs.directory import load_config, load_run
    from sparsecap_jax.runs.overrides import change_data

    paths = [resolve_run(source) for source in sources]
    folders = [(path if path.is_dir() else path.parent) for path in paths]
    runs = [run for run in paths if run.suffix == MODEL_SUFFIX and run.is_file()]
    runs += [run for folder in folders for run in (folder, folder.parent) if _is_run(run)]
    if not runs:
        raise ConfigError("--compare: no run among the sources; expected --references=FILE")
    config = load_run(runs[0]).config if runs[0].is_file() else load_config(runs[0])
    config = change_data(config, changes)
    records = load_dataset(config.data).splits[split]
    references: dict[Hashable, list[str]] = {r.image_id: [*r.raw] for r in records}
    return references, "unicode" if config.eval.tokenizer == "unicode" else "auto"


def _is_run(folder: pathlib.Path) -> bool:
    return (folder / CONFIG).is_file()


def _lines(result: Mapping[str, Any]) -> list[str]:
    """Return the tables of a comparison."""
    models = result["models"]
    scored = [name for name in next(iter(models.values())) if name != "seeds"]
    metrics = [metric for metric in _SHOWN if metric in scored] or scored
    width = max(12, *(len(name) + 2 for name in models))
    images = counted(result["images"], "image")
    lines = [f"{images}; 95% intervals from images drawn with replacement"]
    lines.append(f"{'':{width}s}seeds" + "".join(f"{metric:>26s}" for metric in metrics))
    for name, row in models.items():
        cells = []
        for metric in metrics:
            low, high = row[metric]["95%"]
            cells.append(f"{row[metric]['score']:.3f} [{low:.3f}, {high:.3f}]")
        lines.append(f"{name:{width}s}{len(row['seeds']):5d}" + "".join(f"{c:>26s}" for c in cells))
        if "sd" in row[metrics[0]]:
            spread = [f"seeds' sd {row[metric]['sd']:.3f}" for metric in metrics]
            lines.append(" " * (width + 5) + "".join(f"{cell:>26s}" for cell in spread))
    for row in result["differences"]:
        lines.append(f"{row['first']} minus {row['second']}:")
        for metric in metrics:
            cell = row[metric]
            low, high = cell["95%"]
            lines.append(
                f"  {metric:8s} {cell['difference']:+.4f} [{low:+.4f}, {high:+.4f}]"
                f"  p {cell['p_bootstrap']:.4f} (bootstrap) {cell['p_sign_flip']:.4f} (sign flip)"
                f"  better on {counted(cell['wins'], 'image')}, worse on {cell['losses']}"
            )
        for kind in ("gained", "lost"):
            words = [f"{w['word']} {w['images']:.4g} ({w['right']:.4g} right)" for w in row[kind]]
            lines.append(f"  words {kind}: {', '.join(words) or 'none'}")
    return lines


def _table(images: Sequence[Hashable], captions: Mapping, judged: Mapping) -> list[dict[str, Any]]:
    rows = []
    for image in images:
        row: dict[str, Any] = {"image_id": image}
        for name, one in judged.items():
            row[f"{name} caption"] = captions[name][image]
            row |= {f"{name} {metric}": score for metric, score in one.images[image].items()}
        rows.append(row)
    return rows
