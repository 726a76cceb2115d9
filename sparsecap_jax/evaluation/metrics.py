"""Caption scores of the COCO toolkit and their confidence intervals (docs/metrics.md)."""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from sparsecap_jax.errors import DataError
from sparsecap_jax.evaluation.caption_files import (
    load_caption_sets,
    load_captions,
    load_references,
)
from sparsecap_jax.evaluation.judging import (
    ALL_METRICS,
    FAST_METRICS,
    METRICS,
    TOKENIZERS,
    Judged,
    check_tokenizer,
    corpus_scores,
    judge_captions,
    some_of,
    tokenize,
)
from sparsecap_jax.evaluation.score_files import (
    Extras,
    full_scores,
    load_extras,
    load_groups,
    more_lines,
    write_scores,
)
from sparsecap_jax.evaluation.text_statistics import describe_sets
from sparsecap_jax.files import write_json
from sparsecap_jax.scst.document_frequency import DocumentFrequency

__all__ = [
    "ALL_METRICS",
    "FAST_METRICS",
    "METRICS",
    "TOKENIZERS",
    "Extras",
    "Judged",
    "corpus_scores",
    "evaluate_caption_files",
    "evaluate_caption_sets",
    "full_scores",
    "judge_captions",
    "load_extras",
    "load_groups",
    "more_lines",
    "score_captions",
    "write_scores",
]

logger = logging.getLogger(__name__)


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
        document_frequency: file of `sparsecap prepare_data df`, for CIDEr.
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
            f"{references_path}: {some_of(missing)}"
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
    check_tokenizer(tokenizer)
    sets, references = load_caption_sets(sets_path), load_references(references_path)
    missing = [image for image in sets if image not in references]
    if missing:
        message = f"{len(missing)} of {len(sets)} images have no references in {references_path}"
        raise DataError(f"{sets_path}: {message}: {some_of(missing)}")
    tokens = [[tokenize(tokenizer, texts[image]) for image in sets] for texts in (sets, references)]
    result = {"images": len(sets), **describe_sets(*tokens)}
    if output_path is not None:
        write_json(output_path, result)
    return result
