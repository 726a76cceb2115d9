"""Caption scores of the COCO toolkit and their confidence intervals (docs/metrics.md)."""

import contextlib
import dataclasses
import functools
import logging
import os
import pathlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Num

from sparsecap_jax.data.records import normalize_id
from sparsecap_jax.errors import ConfigError, DataError
from sparsecap_jax.evaluation.caption_files import (
    load_caption_sets,
    load_captions,
    load_references,
)
from sparsecap_jax.evaluation.java_scores import check_spice_jars, meteor, meteor_of_sums, spice
from sparsecap_jax.evaluation.ngram_scores import NgramScores, bleu
from sparsecap_jax.evaluation.ptb_java import java_available, java_tokenize_captions
from sparsecap_jax.evaluation.ptb_tokenizer import tokenize_captions
from sparsecap_jax.evaluation.text_statistics import copied, describe, describe_sets
from sparsecap_jax.files import read_json, write_json, write_table
from sparsecap_jax.scst.document_frequency import DocumentFrequency
from sparsecap_jax.text import is_unspaced, normalize, unicode_words

logger = logging.getLogger(__name__)

METRICS = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr")
FAST_METRICS = tuple(name for name in METRICS if name != "METEOR")
"""Metrics that need no Java."""
ALL_METRICS = (*METRICS, "SPICE")
TOKENIZERS = ("auto", "java", "python", "unicode", "none")

Sums = dict[str, Num[np.ndarray, "*B _"]]


@dataclasses.dataclass(frozen=True, eq=False)
class Judged:
    """Captions of N images and their scores.

    Attributes:
        scores: one number per metric, see `score_captions`.
        images: the same of each image by its id.
        sums: `[N, K]` for each kind of score: what `corpus_scores` needs, summed over images.
        captions: tokens of the caption of each image, separated by blanks.
        references: tokens of its references.
        spice: counts and scores of each image by kind ("All", "Object", ...); or None.
    """

    scores: dict[str, float | None]
    images: dict[Hashable, dict[str, float | None]]
    sums: Sums
    captions: dict[Hashable, str]
    references: dict[Hashable, list[str]]
    spice: list[dict[str, Any]] | None = None


def score_captions(
    candidates: Mapping,
    references: Mapping,
    metrics: Sequence[str] = METRICS,
    tokenizer: str = "auto",
    per_image: bool = False,
    *,
    document_frequency: DocumentFrequency | None = None,
    spice_jars: str | os.PathLike = "",
) -> dict[str, Any]:
    """Score one caption per image against its references.

    Args:
        candidates: the caption of each image id, `{id: str}`; it may be empty text.
        references: at least one caption per image, `{id: [str, ...]}`, for the same ids.
        metrics: names out of `METRICS`.
        tokenizer: "python" for an equivalent of the COCO toolkit's PTBTokenizer, also "auto";
            "java" for that program itself; "unicode" for words by Unicode's
            categories and characters of scripts without blanks (`text.unicode_words`), "none" for
            captions that are tokens separated by blanks already. All but the last normalise
            accents and letters first (`text.normalize`).
        per_image: whether to return the scores of each image too.
        document_frequency: of a corpus, for CIDEr; by default of `references`.
        spice_jars: folder of CoreNLP's jars, which adds SPICE (see `java_scores.spice`).

    Returns:
        One number per metric on the scale 0 to 1 (papers print 100 for a CIDEr of 1.0, and CIDEr
        can exceed 1). METEOR is None, with a warning logged, where Java is missing. `per_image`
        adds the key "per_image": `{id: {metric: number}}`.

    Raises:
        DataError: no captions, ids without references or without candidate, or not text; jars are
            missing.
        ConfigError: an unknown metric or tokenizer, or "java" where Java is missing.
        SparsecapError: a Java program fails or hangs.
    """
    judged = judge_captions(
        candidates,
        references,
        metrics,
        tokenizer,
        document_frequency=document_frequency,
        spice_jars=spice_jars,
    )
    return {**judged.scores, "per_image": judged.images} if per_image else judged.scores


def judge_captions(
    candidates: Mapping,
    references: Mapping,
    metrics: Sequence[str] = METRICS,
    tokenizer: str = "auto",
    *,
    document_frequency: DocumentFrequency | None = None,
    spice_jars: str | os.PathLike = "",
) -> Judged:
    """Score captions as `score_captions` does, and return all that belongs to the scores."""
    for name in metrics:
        if name not in METRICS:
            raise ConfigError(f"metric: found {name!r}, expected one of {', '.join(METRICS)}")
    _check(candidates, references)
    _check_tokenizer(tokenizer)
    if spice_jars:
        check_spice_jars(spice_jars)
        if not java_available():
            raise ConfigError("spice_jars: no java program on the path; expected one for SPICE")
    if tokenizer not in ("unicode", "none") and is_unspaced("".join(candidates.values())):
        logger.warning("captions in a script without blanks: tokenizer 'unicode' scores characters")
    captions = _tokenize(tokenizer, candidates.values())
    flat = iter(_tokenize_kept(tokenizer, tuple(t for key in candidates for t in references[key])))
    judges = [[next(flat) for _ in references[key]] for key in candidates]
    columns: dict[str, tuple[float | None, Sequence[float | None]]] = {}
    sums: Sums = {}
    with contextlib.ExitStack() as stack:
        running = None
        if "METEOR" in metrics and java_available():
            running = stack.enter_context(meteor(captions, judges))
        elif "METEOR" in metrics:
            logger.warning("METEOR is left out: it is a Java program, and no java is on the path")
            columns["METEOR"] = None, [None] * len(captions)
        columns |= _ngram_columns(metrics, captions, judges, document_frequency, sums)
        if running:
            *columns["METEOR"], sums["METEOR"] = running.result()
    ordered = {name: columns[name] for name in METRICS if name in metrics}
    details = None
    if spice_jars:
        total, details = spice(captions, judges, spice_jars)
        each = [of_kind["All"]["f"] for of_kind in details]
        sums["SPICE"] = np.array(each, np.float64)[:, None]
        ordered["SPICE"] = total, each
    images = {
        key: {name: each[row] for name, (_, each) in ordered.items()}
        for row, key in enumerate(candidates)
    }
    scores = {name: total for name, (total, _) in ordered.items()}
    tokens = (
        dict(zip(candidates, captions, strict=True)),
        dict(zip(candidates, judges, strict=True)),
    )
    return Judged(scores, images, sums, *tokens, details)


def _ngram_columns(
    metrics: Sequence[str],
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    document_frequency: DocumentFrequency | None,
    sums: Sums,
) -> dict[str, tuple[float, list[float]]]:
    """Return (score, score of each image) of BLEU, ROUGE-L and CIDEr; adds to `sums`."""
    ngrams, columns = NgramScores(captions, references), {}
    if any(name.startswith("Bleu") for name in metrics):
        sums["Bleu"] = ngrams.bleu_counts()
        totals, each = bleu(sums["Bleu"].sum(axis=0)), bleu(sums["Bleu"])
        columns |= {f"Bleu_{n + 1}": (float(totals[n]), each[:, n].tolist()) for n in range(4)}
    if "CIDEr" in metrics and not any(text for texts in references for text in texts):
        raise DataError("the references hold no words; CIDEr cannot be computed")
    for name, score in (
        ("ROUGE_L", ngrams.rouge),
        ("CIDEr", lambda: ngrams.cider(document_frequency)),
    ):
        if name in metrics:
            values = score()
            sums[name] = values[:, None]
            columns[name] = float(np.mean(values)), values.tolist()
    return columns


def corpus_scores(sums: Sums, images: np.ndarray | int) -> dict[str, Any]:
    """Return metrics `[*B]` of statistics `[*B, K]` that are summed over so many `images`.

    BLEU and METEOR are functions of the sums, all others means over images.
    """
    scores = {}
    for kind, values in sums.items():
        if kind == "Bleu":
            for n, score in enumerate(np.moveaxis(bleu(values), -1, 0), start=1):
                scores[f"Bleu_{n}"] = score
        elif kind == "METEOR":
            scores[kind] = meteor_of_sums(values)
        else:
            scores[kind] = values[..., 0] / images
    return scores


def evaluate_caption_files(
    captions_path: str | os.PathLike,
    references_path: str | os.PathLike,
    output_path: str | os.PathLike | None = None,
    *,
    metrics: Sequence[str] = METRICS,
    tokenizer: str = "auto",
    document_frequency: str | os.PathLike = "",
    spice_jars: str | os.PathLike = "",
    groups: str | os.PathLike = "",
    training: str | os.PathLike = "",
) -> dict[str, Any]:
    """Score the captions of a file (see `load_captions`, `load_references`, `score_captions`).

    Only images that have a caption count (as in the reference); a logged warning reports the
    number of references without one.

    Args:
        captions_path: the captions.
        references_path: their references.
        output_path: scores as JSON; scores of each image are written next to it, see
            `write_scores`.
        metrics: see `score_captions`.
        tokenizer: see `score_captions`.
        document_frequency: file of `launch/prepare_data.py df`, for CIDEr.
        spice_jars: see `score_captions`.
        groups: JSON file, `{image id: group}`; adds the scores of each group as "groups".
        training: file of the training captions, in a form of references.

    Returns:
        The scores, the number of "images", and "text", see `text_statistics.describe`.

    Raises:
        DataError: a file is missing or broken, or an image has a caption but no references.
    """
    captions = load_captions(captions_path)
    references = load_references(references_path)
    missing = [image_id for image_id in captions if image_id not in references]
    if missing:
        raise DataError(
            f"{captions_path}: {len(missing)} of {len(captions)} images have no references in "
            f"{references_path}: {_some(missing)}"
        )
    unused = len(references) - len(captions)
    if unused:
        logger.warning("%s: no caption for %d images of the references", captions_path, unused)
    references = {image_id: references[image_id] for image_id in captions}
    extras = load_extras(captions, document_frequency, spice_jars, groups)
    known = load_references(training).values() if training else None
    training_texts = None if known is None else [text for texts in known for text in texts]
    result, judged = full_scores(captions, references, metrics, tokenizer, extras, training_texts)
    if output_path is not None:
        write_scores(output_path, result, judged, captions)
    return result


@dataclasses.dataclass(frozen=True, eq=False)
class Extras:
    """Settings of `full_scores` that are read from files, see `evaluate_caption_files`."""

    frequency: DocumentFrequency | None = None
    corpus: str = ""
    spice_jars: str | os.PathLike = ""
    groups: Mapping[Hashable, str] = dataclasses.field(default_factory=dict)


def load_extras(
    images: Iterable[Hashable],
    document_frequency: str | os.PathLike = "",
    spice_jars: str | os.PathLike = "",
    groups: str | os.PathLike = "",
) -> Extras:
    """Read and check them, before captions are made; DataError where a file is at fault."""
    frequency, corpus = None, ""
    if document_frequency:
        frequency = DocumentFrequency.load(document_frequency)
        if frequency.tokens != "words":
            raise DataError(f"{document_frequency}: counts ids of words; expected words for CIDEr")
        name = frequency.dataset or pathlib.Path(document_frequency).name
        corpus = f"{name}, {frequency.num_images} images"
    if spice_jars:
        check_spice_jars(spice_jars)
    return Extras(frequency, corpus, spice_jars, load_groups(groups, images) if groups else {})


def full_scores(
    captions: Mapping,
    references: Mapping,
    metrics: Sequence[str],
    tokenizer: str,
    extras: Extras,
    training: Iterable[str] | None = None,
) -> tuple[dict[str, Any], Judged]:
    """Return scores along with those of groups and figures of the text; and what they stem from.

    Args: see `evaluate_caption_files`; `training` are the captions of the training split.
    """
    judged = judge_captions(
        captions,
        references,
        metrics,
        tokenizer,
        document_frequency=extras.frequency,
        spice_jars=extras.spice_jars,
    )
    result: dict[str, Any] = {**judged.scores, "images": len(captions)}
    if extras.corpus:
        result["CIDEr_df"] = extras.corpus
    if extras.groups:
        result["groups"] = _group_scores(judged, extras.groups)
    result["text"] = describe([*judged.captions.values()], [*judged.references.values()])
    if training is not None:
        result["text"]["copied"] = copied(captions.values(), training)
    return result, judged


def more_lines(result: Mapping[str, Any]) -> list[str]:
    """Return lines on what `full_scores` adds to scores."""
    lines = []
    if "CIDEr_df" in result:
        lines.append(f"CIDEr: document frequencies of {result['CIDEr_df']}, not of the references")
    for name, group in result.get("groups", {}).items():
        shown = " | ".join(f"{k} {v:.4f}" for k, v in group.items() if k != "images")
        lines.append(f"group {name}: {group['images']} images | {shown}")
    lines.append("text: " + " | ".join(f"{k} {v:.4g}" for k, v in result["text"].items()))
    return lines


def evaluate_caption_sets(
    sets_path: str | os.PathLike,
    references_path: str | os.PathLike,
    output_path: str | os.PathLike | None = None,
    *,
    tokenizer: str = "auto",
) -> dict[str, Any]:
    """Return how much several captions of an image differ (see `text_statistics.describe_sets`).

    Args:
        sets_path: see `load_caption_sets`.
        references_path: see `load_references`.
        output_path: JSON file for the figures.
        tokenizer: see `score_captions`.

    Raises:
        DataError: a file is missing or broken, an image has no references, or not as many captions
            as the others.
    """
    _check_tokenizer(tokenizer)
    sets, references = load_caption_sets(sets_path), load_references(references_path)
    missing = [image for image in sets if image not in references]
    if missing:
        message = f"{len(missing)} of {len(sets)} images have no references in {references_path}"
        raise DataError(f"{sets_path}: {message}: {_some(missing)}")
    tokens = [
        [_tokenize(tokenizer, texts[image]) for image in sets] for texts in (sets, references)
    ]
    result = {"images": len(sets), **describe_sets(*tokens)}
    if output_path is not None:
        write_json(output_path, result)
    return result


def load_groups(path: str | os.PathLike, images: Iterable[Hashable]) -> dict[Hashable, str]:
    """Read `{image id: group}` and return the groups of `images`; others have none.

    Raises:
        DataError: the file is missing or broken, or has none of the images.
    """
    content = read_json(path, "{image id: group}")
    if not isinstance(content, dict):
        raise DataError(f"{path}: found {content!r:.80}, expected {{image id: group}}")
    groups = {}
    for key, group in content.items():
        if isinstance(group, bool) or not isinstance(group, str | int):
            raise DataError(f"{path}: {key!r}: found {group!r:.80}, expected the name of a group")
        groups[normalize_id(key)] = str(group)
    members = {image: groups[image] for image in images if image in groups}
    if not members:
        raise DataError(f"{path}: has none of the captions' images; expected {{image id: group}}")
    return members


def _group_scores(judged: Judged, members: Mapping[Hashable, str]) -> dict[str, dict[str, Any]]:
    """Score each group; CIDEr keeps the document frequencies of all images."""
    names = np.array([members.get(image, "") for image in judged.images])
    groups = {}
    for name in sorted({*members.values()}):
        rows = np.flatnonzero(names == name)
        sums = {kind: values[rows].sum(axis=0) for kind, values in judged.sums.items()}
        scores = corpus_scores(sums, len(rows))
        groups[name] = {"images": len(rows)}
        groups[name] |= {
            metric: float(scores[metric]) for metric in judged.scores if metric in scores
        }
    return groups


def write_scores(
    path: str | os.PathLike,
    result: Mapping[str, Any],
    judged: Judged,
    captions: Mapping[Hashable, str],
    step: str = "",
) -> list[str]:
    """Write scores as JSON, and two files with those of each image next to it.

    `STEM_per_image.csv` is a table with the captions; `STEM_detailed.json`, or
    `score_STEP_detailed.json`, is the reference's form, which its caption explorer reads: a list of
    `{"image_id", "Bleu_1", ...}`.

    Args:
        path: file for `result`, its name ends in `.json`.
        result: what to write.
        judged: scores of each image.
        captions: texts of the captions.
        step: names the weights of a run.

    Returns:
        The names of the files.
    """
    path = pathlib.Path(path)
    write_json(path, result)
    table = path.with_name(f"{path.stem}_per_image.csv")
    rows = [
        {"image_id": image, "caption": captions[image], **scores}
        for image, scores in judged.images.items()
    ]
    write_table(table, rows)
    detailed = path.with_name(f"{f'score_{step}' if step else path.stem}_detailed.json")
    entries = [{"image_id": image, **scores} for image, scores in judged.images.items()]
    for entry, of_kind in zip(entries, judged.spice or [], strict=False):
        entry["SPICE"] = of_kind
    write_json(detailed, [dict(sorted(entry.items())) for entry in entries])
    return [path.name, table.name, detailed.name]


def _check(candidates: Mapping, references: Mapping) -> None:
    if not candidates:
        raise DataError("no captions to score; expected at least one")
    for keys, others, what in (
        (candidates, references, "have a caption but no references"),
        (references, candidates, "have references but no caption"),
    ):
        missing = [key for key in keys if key not in others]
        if missing:
            raise DataError(f"{len(missing)} image ids {what}: {_some(missing)}")
    for key, caption in candidates.items():
        texts = references[key]
        if isinstance(texts, str) or not isinstance(texts, Sequence) or not texts:
            raise DataError(f"references of image {key!r}: found {texts!r}, expected some captions")
        for kind, text in (("caption", caption), *(("reference", text) for text in texts)):
            if not isinstance(text, str):
                raise DataError(f"{kind} of image {key!r}: found {text!r}, expected text")


def _some(keys: Sequence[Hashable]) -> str:
    return ", ".join(map(repr, keys[:5])) + " ..." * (len(keys) > 5)


def _check_tokenizer(name: str) -> None:
    if name not in TOKENIZERS:
        raise ConfigError(f"tokenizer: found {name!r}, expected one of {', '.join(TOKENIZERS)}")
    if name == "java" and not java_available():
        raise ConfigError("tokenizer 'java': no java program on the path; 'python' gives the same")


def _tokenize(name: str, captions: Iterable[str]) -> list[str]:
    if name == "none":
        return [" ".join(text.split()) for text in captions]
    if name == "unicode":
        return [" ".join(unicode_words(text)) for text in captions]
    ptb = java_tokenize_captions if name == "java" else tokenize_captions
    return ptb([normalize(text) for text in captions])


@functools.lru_cache(4)
def _tokenize_kept(name: str, captions: tuple[str, ...]) -> list[str]:
    """Tokenize references, which many calls share: a table by their content."""
    return _tokenize(name, captions)
