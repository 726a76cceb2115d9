"""Scoring a file of captions against a file of references."""

import logging
import os
from collections.abc import Sequence
from typing import Any

from sparsecap_jax.errors import DataError
from sparsecap_jax.evaluation.caption_files import load_captions, load_references
from sparsecap_jax.evaluation.metrics import METRICS, score_captions
from sparsecap_jax.files import write_json

logger = logging.getLogger(__name__)


def evaluate_caption_files(
    captions_path: str | os.PathLike,
    references_path: str | os.PathLike,
    output_path: str | os.PathLike | None = None,
    *,
    metrics: Sequence[str] = METRICS,
    tokenizer: str = "auto",
) -> dict[str, Any]:
    """Score the captions of a file.

    Only images that have a caption count (as in the reference); a logged warning says how many
    others there are in the references.

    Args:
        captions_path: JSON in COCO's results format, see `load_captions`.
        references_path: JSON in any of the formats of `load_references`.
        output_path: where to write the scores as JSON; nowhere if None.
        metrics: see `score_captions`.
        tokenizer: see `score_captions`.

    Returns:
        `{metric: number on the 0-1 scale}` (METEOR None where Java is missing) and "images", the
        number of images scored.

    Raises:
        DataError: a file is missing or broken, or an image has a caption but no references.
    """
    captions = load_captions(captions_path)
    references = load_references(references_path)
    missing = [image_id for image_id in captions if image_id not in references]
    if missing:
        some = ", ".join(repr(image_id) for image_id in missing[:5])
        raise DataError(
            f"{captions_path}: {len(missing)} of {len(captions)} images have no references in "
            f"{references_path}: {some}{' ...' * (len(missing) > 5)}"
        )
    unused = len(references) - len(captions)
    if unused:
        logger.warning("%s: no caption for %d images of the references", captions_path, unused)
    scores = score_captions(
        captions,
        {image_id: references[image_id] for image_id in captions},
        metrics=metrics,
        tokenizer=tokenizer,
    )
    result = {**scores, "images": len(captions)}
    if output_path is not None:
        write_json(output_path, result)
    return result
