"""Captioning a folder of features into a COCO results file (`launch/caption.py`)."""

import pathlib
import time
from collections.abc import Callable

from sparsecap_jax.captioner import Captioner
from sparsecap_jax.data.features import NpyFolderStore
from sparsecap_jax.errors import DataError
from sparsecap_jax.evaluation.captioning import to_coco
from sparsecap_jax.files import write_json


def caption_folder(
    checkpoint: str | pathlib.Path,
    features: str | pathlib.Path,
    output: str | pathlib.Path,
    *,
    beam_size: int = 5,
    length_penalty: str = "",
    batch_size: int = 50,
    report: Callable[[str], None] = print,
) -> list[dict]:
    """Caption every image that has a feature file.

    Args:
        checkpoint: run directory of a trained model.
        features: folder that holds `cocobu_att/` (or `bu/`), see `NpyFolderStore`.
        output: JSON file to write, `[{"image_id", "caption", "log_prob"}]`; image ids are integers
            when all digits, `log_prob` is the natural log of the caption's probability, EOS
            included, without length penalty.
        beam_size: 1 for greedy search.
        length_penalty: "", "wu_<alpha>" or "avg_0".
        batch_size: images decoded at a time.
        report: takes one line of progress at a time.

    Returns:
        What was written.

    Raises:
        CheckpointError: the checkpoint is missing or corrupt.
        DataError: there are no features, or some are malformed.
    """
    captioner = Captioner.load(checkpoint)
    store = NpyFolderStore(features, captioner.config.data.feature_size, captioner.needs_boxes)
    image_ids = store.image_ids()
    if not image_ids:
        raise DataError(f"{features}: no ID.npy in cocobu_att/; expected one per image")
    captions, start = {}, time.monotonic()
    found = captioner.caption_store(
        store,
        image_ids,
        batch_size=batch_size,
        beam_size=beam_size,
        length_penalty=length_penalty,
    )
    for image_id, caption in found:
        captions[image_id] = caption
        if len(captions) % batch_size == 0 or len(captions) == len(image_ids):
            rate = len(captions) / (time.monotonic() - start)
            report(f"{len(captions)}/{len(image_ids)} images | {rate:.1f} images/s")
    result = to_coco(captions)
    write_json(output, result)
    report(f"wrote {output}")
    return result
