"""Caption scores of the COCO toolkit: BLEU, METEOR, ROUGE-L and CIDEr (docs/metrics.md)."""

import contextlib
import logging
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

from sparsecap_jax.errors import ConfigError, DataError, SparsecapError
from sparsecap_jax.evaluation import ptb_tokenizer
from sparsecap_jax.evaluation.ptb_java import java_available, java_tokenize

logger = logging.getLogger(__name__)

METRICS = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr")
FAST_METRICS = tuple(name for name in METRICS if name != "METEOR")
"""Those that need no Java: what validation during training computes."""
TOKENIZERS = ("auto", "java", "python", "none")

_Captions = dict[Hashable, list[str]]
_Scores = dict[str, tuple[float, Sequence[float]]]


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
        tokenizer: "java" for the PTBTokenizer of the COCO toolkit, "python" for the equal one
            here, "auto" for Java where there is one, "none" for captions that are tokens separated
            by blanks already.
        per_image: whether to return the scores of each image too.

    Returns:
        One number per metric on the scale 0 to 1 (CIDEr: 1.0 is what papers print as 100, and it
        can exceed 1). METEOR is None, with a warning logged, where Java is missing. With
        `per_image` there is a key "per_image": `{id: {metric: number}}`.

    Raises:
        DataError: no captions, ids without references or without candidate, or not text.
        ConfigError: an unknown metric or tokenizer, or Java demanded where there is none.
    """
    for name in metrics:
        if name not in METRICS:
            raise ConfigError(f"metric: found {name!r}, expected one of {', '.join(METRICS)}")
    _check(candidates, references)
    tokenize = _tokenizer(tokenizer)
    found = tokenize({key: [text] for key, text in candidates.items()})
    expected = tokenize({key: references[key] for key in candidates})
    scores = _scores(metrics, expected, found)
    result: dict[str, Any] = {}
    for name in METRICS:
        if name in metrics:
            result[name] = scores[name][0] if name in scores else None
    if per_image:
        rows: dict[Hashable, dict[str, float | None]] = {key: {} for key in found}
        for name in result:
            values = scores[name][1] if name in scores else [None] * len(rows)
            for row, value in zip(rows.values(), values, strict=True):
                row[name] = value
        result["per_image"] = rows
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
            some = ", ".join(repr(key) for key in missing[:5])
            raise DataError(f"{len(missing)} image ids {what}: {some}{' ...' * (len(missing) > 5)}")
    for key, text in candidates.items():
        if not isinstance(text, str):
            raise DataError(f"caption of image {key!r}: found {text!r}, expected text")
        texts = references[key]
        if isinstance(texts, str) or not isinstance(texts, Sequence) or not texts:
            raise DataError(f"references of image {key!r}: found {texts!r}, expected some captions")
        for reference in texts:
            if not isinstance(reference, str):
                raise DataError(f"reference of image {key!r}: found {reference!r}, expected text")


def _tokenizer(name: str) -> Callable[[Mapping[Hashable, Sequence[str]]], _Captions]:
    if name not in TOKENIZERS:
        raise ConfigError(f"tokenizer: found {name!r}, expected one of {', '.join(TOKENIZERS)}")
    if name == "none":
        return _split_at_blanks
    if name == "python" or (name == "auto" and not java_available()):
        return ptb_tokenizer.tokenize
    if not java_available():
        raise ConfigError("tokenizer 'java': no java program on the path; 'python' gives the same")
    return java_tokenize


def _split_at_blanks(captions: Mapping[Hashable, Sequence[str]]) -> _Captions:
    return {key: [" ".join(text.split()) for text in texts] for key, texts in captions.items()}


def _scores(metrics: Sequence[str], expected: _Captions, found: _Captions) -> _Scores:
    """(score, score of each image) of the metrics that can be computed."""
    # Imports take a moment, and training on a machine without the toolkit need not fail.
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    scores: dict[str, tuple[Any, Any]] = {}
    if any(name.startswith("Bleu") for name in metrics):
        total, each = Bleu(4).compute_score(expected, found, verbose=0)
        for n in range(4):
            scores[f"Bleu_{n + 1}"] = (total[n], each[n])
    if "METEOR" in metrics:
        if java_available():
            scores["METEOR"] = _meteor(expected, found)
        else:
            logger.warning("METEOR is left out: it is a Java program, and no java is on the path")
    if "ROUGE_L" in metrics:
        scores["ROUGE_L"] = Rouge().compute_score(expected, found)
    if "CIDEr" in metrics:
        if not any(text for texts in expected.values() for text in texts):
            raise DataError("the references hold no words; CIDEr cannot be computed")
        scores["CIDEr"] = Cider().compute_score(expected, found)
    return {
        name: (float(total), [float(value) for value in each])
        for name, (total, each) in scores.items()
    }


def _meteor(expected: _Captions, found: _Captions) -> tuple[float, list[float]]:
    with _meteor_process() as meteor:
        return meteor.compute_score(expected, found)


@contextlib.contextmanager
def _meteor_process() -> Iterator[Any]:
    """A running METEOR 1.5; its process and pipes are gone afterwards."""
    from pycocoevalcap.meteor.meteor import Meteor

    meteor = Meteor()
    process = meteor.meteor_p
    try:
        yield meteor
    except (OSError, ValueError) as error:  # the process has died: broken pipe, or no number
        process.kill()
        said = process.stderr.read().decode(errors="replace").strip()
        raise SparsecapError(f"METEOR failed: {said[-300:] or error}") from error
    finally:
        # A failed call keeps the lock, for which the destructor would wait forever.
        meteor.lock = threading.Lock()
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(OSError):
                pipe.close()
