"""Scores of captions in memory, along with what intervals and groups need of each image."""

import contextlib
import dataclasses
import functools
import logging
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Num

from sparsecap_jax.data.records import check_text
from sparsecap_jax.errors import ConfigError, DataError
from sparsecap_jax.evaluation.java_scores import check_spice_jars, meteor, meteor_of_sums, spice
from sparsecap_jax.evaluation.ngram_scores import NgramScores, bleu
from sparsecap_jax.evaluation.ptb_java import java_available, java_tokenize_captions
from sparsecap_jax.evaluation.ptb_tokenizer import tokenize_captions
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
    _check_options(metrics, tokenizer, spice_jars)
    _check_texts(candidates, references)
    if tokenizer not in ("unicode", "none") and is_unspaced("".join(candidates.values())):
        logger.warning("captions in a script without blanks: tokenizer 'unicode' scores characters")
    captions = tokenize(tokenizer, candidates.values())
    flat = iter(tokenize_kept(tokenizer, tuple(t for key in candidates for t in references[key])))
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
            total, each, sums["METEOR"] = running.result()
            columns["METEOR"] = total, each
    ordered = {name: columns[name] for name in METRICS if name in metrics}
    details = None
    if spice_jars:
        total, details = spice(captions, judges, spice_jars)
        values = [of_kind["All"]["f"] for of_kind in details]
        sums["SPICE"] = np.array(values, np.float64)[:, None]
        ordered["SPICE"] = total, values
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
    ngrams = NgramScores(captions, references)
    columns: dict[str, tuple[float, list[float]]] = {}
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


def _check_options(metrics: Sequence[str], tokenizer: str, spice_jars: str | os.PathLike) -> None:
    for name in metrics:
        if name not in METRICS:
            raise ConfigError(f"metric: found {name!r}, expected one of {', '.join(METRICS)}")
    check_tokenizer(tokenizer)
    if spice_jars:
        check_spice_jars(spice_jars)
        if not java_available():
            raise ConfigError("spice_jars: no java program on the path; expected one for SPICE")


def _check_texts(candidates: Mapping, references: Mapping) -> None:
    if not candidates:
        raise DataError("no captions to score; expected at least one")
    for keys, others, what in (
        (candidates, references, "have a caption but no references"),
        (references, candidates, "have references but no caption"),
    ):
        missing = [key for key in keys if key not in others]
        if missing:
            raise DataError(f"{len(missing)} image ids {what}: {some_of(missing)}")
    for key, caption in candidates.items():
        texts = references[key]
        if isinstance(texts, str) or not isinstance(texts, Sequence) or not texts:
            raise DataError(f"references of image {key!r}: found {texts!r}, expected some captions")
        for kind, text in (("caption", caption), *(("reference", text) for text in texts)):
            if not isinstance(text, str):
                raise DataError(f"{kind} of image {key!r}: found {text!r}, expected text")
            check_text(text, f"{kind} of image {key!r}")


def some_of(keys: Sequence[Hashable]) -> str:
    """Return the first of some keys, for messages."""
    return ", ".join(map(repr, keys[:5])) + " ..." * (len(keys) > 5)


def check_tokenizer(name: str) -> None:
    """Raise a ConfigError where a tokenizer is unknown, or there is no Java for it."""
    if name not in TOKENIZERS:
        raise ConfigError(f"tokenizer: found {name!r}, expected one of {', '.join(TOKENIZERS)}")
    if name == "java" and not java_available():
        raise ConfigError("tokenizer 'java': no java program on the path; 'python' gives the same")


def tokenize(name: str, captions: Iterable[str]) -> list[str]:
    """Return the tokens of captions, separated by blanks; for the names see `score_captions`."""
    if name == "none":
        return [" ".join(text.split()) for text in captions]
    if name == "unicode":
        return [" ".join(unicode_words(text)) for text in captions]
    ptb = java_tokenize_captions if name == "java" else tokenize_captions
    return ptb([normalize(text) for text in captions])


@functools.lru_cache(4)
def tokenize_kept(name: str, captions: tuple[str, ...]) -> list[str]:
    """Tokenize references, which many calls share: a table by their content."""
    return tokenize(name, captions)
