"""Captions of photos, or of a folder of features (`launch/caption.py`)."""

import datetime
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from sparsecap_jax import stopping
from sparsecap_jax.captioner import Captioner
from sparsecap_jax.captioning.batches import Caption, best_caption, to_coco
from sparsecap_jax.captioning.search import SearchOptions
from sparsecap_jax.captioning.stream import CaptionStream
from sparsecap_jax.data.karpathy import ImageId
from sparsecap_jax.data.stores import open_store
from sparsecap_jax.errors import DataError
from sparsecap_jax.files import write_json


def caption_folder(
    checkpoint: str | pathlib.Path | Sequence[str | pathlib.Path],
    features: str | pathlib.Path,
    output: str | pathlib.Path,
    *,
    image_sizes: str = "",
    batch_size: int = 50,
    candidates: bool = False,
    attention: bool = False,
    report: Callable[[str], None] = print,
    **search: Any,
) -> list[dict]:
    """Caption every image that has a feature file.

    Captions go to `OUTPUT.partial` as they are found, one line of JSON each, and to `output`
    once complete. The same call continues after an interruption.

    Args:
        checkpoint: run directory or name of a captioner, or several for an ensemble.
        features: file or folder of any format that `stores.open_store` reads.
        output: file to write, `.jsonl` (an entry a line) or `.json` (COCO's list of results). An
            entry is `{"image_id", "caption", "log_prob"}`; image ids are integers when all digits,
            `log_prob` is the natural log of the caption's probability, EOS included, without
            penalties, null where constraints left no caption.
        image_sizes: file of image sizes, for boxes in pixels, see `stores.open_store`.
        batch_size: images decoded at a time.
        candidates: whether entries also have all captions of the search, `"candidates":
            [{"caption", "log_prob", "score"}]`.
        attention: whether entries have the weights of the regions for each word, `"attention"`.
        report: takes one line of progress at a time.
        **search: see `SearchOptions`.

    Returns:
        The entries written.

    Raises:
        CheckpointError: the checkpoint is missing or corrupt.
        ConfigError: options that are out of range or contradict each other.
        DataError: there are no features, or some are malformed; or `OUTPUT.partial` belongs to
            other options.
    """
    options = SearchOptions(**search)
    captioner = Captioner.load(checkpoint)
    store = open_store(features, captioner.feature_size, captioner.needs_boxes, sizes=image_sizes)
    image_ids = store.image_ids()
    if not image_ids:
        raise DataError(f"{features}: no ID.npy in cocobu_att/; expected one per image")
    settings = {"checkpoint": repr(checkpoint), "features": str(features)}
    settings |= {"options": repr(options), "candidates": candidates, "attention": attention}
    with CaptionStream(output, settings) as stream:
        remaining = [image_id for image_id in image_ids if image_id not in stream.done]
        if stream.done:
            report(f"continuing: {len(stream.done)} of {len(image_ids)} images are captioned")
        if remaining:
            results = captioner.caption_store(
                store, remaining, batch_size=batch_size, attention=attention, **search
            )
            start, total = time.monotonic(), len(remaining)
            for count, (image_id, captions) in enumerate(stopping.between(results), 1):
                stream.write(_entry(image_id, captions, candidates))
                if count % batch_size == 0 or count == total:
                    rate = count / (time.monotonic() - start)
                    left = datetime.timedelta(seconds=math.ceil((total - count) / rate))
                    report(f"{count}/{total} images | {rate:.1f} images/s | {left} left")
        entries = stream.finish(image_ids)
    report(f"wrote {output}")
    return entries


def caption_photos(
    checkpoint: str | pathlib.Path | Sequence[str | pathlib.Path],
    photos: Sequence[str | pathlib.Path],
    output: str | pathlib.Path | None = None,
    *,
    batch_size: int = 16,
    report: Callable[[str], None] = print,
    **search: Any,
) -> dict[str, str]:
    """Caption photos and report each caption as it is found.

    Args:
        checkpoint: run directory or name of a captioner, or several for an ensemble.
        photos: files.
        output: JSON file to write too, `{path: caption}`.
        batch_size: photos at a time.
        report: takes one line at a time.
        **search: see `Captioner.caption_photos`.

    Returns:
        Captions by path.

    Raises:
        SparsecapError: the checkpoint, the extractor, a photo or an option is at fault.
    """
    captions = {}
    results = Captioner.load(checkpoint).caption_photos(photos, batch_size=batch_size, **search)
    for path, caption in stopping.between(zip(photos, results, strict=True), advice=""):
        captions[str(path)] = caption.text
        report(f"{path}: {caption.text}")
    if output:
        write_json(output, captions)
    return captions


def _entry(image_id: ImageId, captions: list[Caption], candidates: bool) -> dict[str, Any]:
    entry = to_coco(image_id, best_caption(captions))
    if candidates:
        entry["candidates"] = [
            {"caption": one.text, "log_prob": _finite(one.log_prob), "score": _finite(one.score)}
            for one in captions
        ]
    return entry


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
