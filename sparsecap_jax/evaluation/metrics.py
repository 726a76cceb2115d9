"""Caption scores of the COCO toolkit and their confidence intervals (docs/metrics.md)."""

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from sparsecap_jax.errors import ConfigError, DataError, SparsecapError
from sparsecap_jax.evaluation.caption_files import load_captions, load_references
from sparsecap_jax.evaluation.ptb_java import java_available, java_tokenize_captions
from sparsecap_jax.evaluation.ptb_tokenizer import tokenize, tokenize_captions
from sparsecap_jax.files import write_json
from sparsecap_jax.text import is_unspaced, normalize, unicode_words

logger = logging.getLogger(__name__)

METRICS = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr")
FAST_METRICS = tuple(name for name in METRICS if name != "METEOR")
"""Metrics that need no Java."""
TOKENIZERS = ("auto", "java", "python", "unicode", "none")


def score_captions(
    candidates: Mapping,
    references: Mapping,
    metrics: Sequence[str] = METRICS,
    tokenizer: str = "auto",
    per_image: bool = False,
) -> dict[str, Any]:
    """Score one caption per image against its references.

    Args:
        candidates: the caption of each image id, `{id: str}`; it may be empty text.
        references: at least one caption per image, `{id: [str, ...]}`, for the same ids.
        metrics: names out of `METRICS`.
        tokenizer: "java" for the PTBTokenizer of the COCO toolkit, "python" for its equivalent in
            this package, "auto" for Java if it is installed, "unicode" for words by Unicode's
            categories and characters of scripts without blanks (`text.unicode_words`), "none" for
            captions that are tokens separated by blanks already. All but the last normalise
            accents and letters first (`text.normalize`).
        per_image: whether to return the scores of each image too.

    Returns:
        One number per metric on the scale 0 to 1 (papers print 100 for a CIDEr of 1.0, and CIDEr
        can exceed 1). METEOR is None, with a warning logged, where Java is missing. `per_image`
        adds the key "per_image": `{id: {metric: number}}`.

    Raises:
        DataError: no captions, ids without references or without candidate, or not text.
        ConfigError: an unknown metric or tokenizer, or "java" where Java is missing.
    """
    for name in metrics:
        if name not in METRICS:
            raise ConfigError(f"metric: found {name!r}, expected one of {', '.join(METRICS)}")
    _check(candidates, references)
    chosen = _tokenizer(tokenizer)
    if tokenizer not in ("unicode", "none") and is_unspaced("".join(candidates.values())):
        logger.warning("captions in a script without blanks: tokenizer 'unicode' scores characters")
    captions = tokenize({key: [text] for key, text in candidates.items()}, chosen)
    judges = tokenize({key: references[key] for key in candidates}, chosen)
    scores = _scores(metrics, judges, captions)
    missing = (None, [None] * len(captions))
    ordered = {name: scores.get(name, missing) for name in METRICS if name in metrics}
    result: dict[str, Any] = {name: total for name, (total, _) in ordered.items()}
    if per_image:
        result["per_image"] = {
            key: {name: each[row] for name, (_, each) in ordered.items()}
            for row, key in enumerate(captions)
        }
    return result


def bootstrap_interval(
    values: Sequence[float], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile interval of the mean of `values`, each the score of an image.

    Images are drawn with replacement, `resamples` times; the share `level` of the means lies
    inside. CIDEr keeps the document frequencies of the whole set, so that an image keeps its score.
    """
    scores = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(scores), np.full(len(scores), 1 / len(scores)), resamples)
    means = counts @ scores / len(scores)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def evaluate_caption_files(
    captions_path: str | os.PathLike,
    references_path: str | os.PathLike,
    output_path: str | os.PathLike | None = None,
    *,
    metrics: Sequence[str] = METRICS,
    tokenizer: str = "auto",
) -> dict[str, Any]:
    """Score the captions of a file (see `load_captions`, `load_references`, `score_captions`).

    Only images that have a caption count (as in the reference); a logged warning reports the
    number of references without one.

    Returns:
        The scores and the number of "images"; also written to `output_path` as JSON.

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
    judged = {image_id: references[image_id] for image_id in captions}
    result = score_captions(captions, judged, metrics, tokenizer) | {"images": len(captions)}
    if output_path is not None:
        write_json(output_path, result)
    return result


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


def _tokenizer(name: str) -> Callable[[Sequence[str]], Sequence[str]]:
    if name not in TOKENIZERS:
        raise ConfigError(f"tokenizer: found {name!r}, expected one of {', '.join(TOKENIZERS)}")
    if name == "none":
        return lambda captions: [" ".join(text.split()) for text in captions]
    if name == "unicode":
        return lambda captions: [" ".join(unicode_words(text)) for text in captions]
    java = java_available()
    if name == "java" and not java:
        raise ConfigError("tokenizer 'java': no java program on the path; 'python' gives the same")
    ptb = java_tokenize_captions if java and name != "python" else tokenize_captions
    return lambda captions: ptb([normalize(text) for text in captions])


def _scores(
    metrics: Sequence[str], references: Mapping, captions: Mapping
) -> dict[str, tuple[float, list[float]]]:
    """Return (score, score of each image) of the metrics that can be computed."""
    # Imported here: it takes a moment, and training does without the toolkit.
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    scores: dict[str, tuple[Any, Any]] = {}
    if any(name.startswith("Bleu") for name in metrics):
        bleu = Bleu(4).compute_score(references, captions, verbose=0)
        scores |= {f"Bleu_{n}": score for n, score in enumerate(zip(*bleu, strict=True), 1)}
    if "METEOR" in metrics:
        if java_available():
            scores["METEOR"] = _meteor(references, captions)
        else:
            logger.warning("METEOR is left out: it is a Java program, and no java is on the path")
    if "ROUGE_L" in metrics:
        scores["ROUGE_L"] = Rouge().compute_score(references, captions)
    if "CIDEr" in metrics:
        if not any(text for texts in references.values() for text in texts):
            raise DataError("the references hold no words; CIDEr cannot be computed")
        scores["CIDEr"] = Cider().compute_score(references, captions)
    return {name: (float(total), list(map(float, each))) for name, (total, each) in scores.items()}


def _meteor(references: Mapping, captions: Mapping) -> tuple[float, list[float]]:
    """Run METEOR 1.5; its process and pipes are closed afterwards."""
    from pycocoevalcap.meteor.meteor import Meteor

    meteor = Meteor()
    process = meteor.meteor_p
    try:
        return meteor.compute_score(references, captions)
    except (OSError, ValueError) as error:  # the process has died: broken pipe, or no number
        process.kill()
        output = process.stderr.read().decode(errors="replace").strip()
        raise SparsecapError(f"METEOR failed: {output[-300:] or error}") from error
    finally:
        # A failed call keeps the lock, for which the destructor would wait forever.
        meteor.lock = threading.Lock()
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(OSError):
                pipe.close()
