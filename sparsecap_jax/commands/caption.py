"""Captions of photos, or of a folder of features (`sparsecap caption`)."""

import dataclasses
import datetime
import itertools
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from sparsecap_jax import stopping
from sparsecap_jax.captioner import Captioner
from sparsecap_jax.captioning.batches import Caption, best_caption, finite, to_coco
from sparsecap_jax.captioning.search import check_names, search_options
from sparsecap_jax.captioning.stream import CaptionStream
from sparsecap_jax.data.records import ImageId, image_id_from_filename
from sparsecap_jax.data.stores import open_store
from sparsecap_jax.errors import DataError
from sparsecap_jax.photos.extract import open_photos
from sparsecap_jax.photos.images import list_photos, photo_name
from sparsecap_jax.text import counted


def caption_folder(
    checkpoint: str | pathlib.Path | Sequence[str | pathlib.Path],
    features: str | pathlib.Path,
    output: str | pathlib.Path,
    *,
    image_sizes: str = "",
    batch_size: int = 50,
    candidates: bool = False,
    attention: bool = False,
    backend: str = "auto",
    overwrite: bool = False,
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
        backend: see `Captioner.load`.
        overwrite: whether a finished `output` is replaced.
        report: takes one line of progress at a time.
        **search: see `SearchOptions`.

    Returns:
        The entries written.

    Raises:
        CheckpointError: the checkpoint is missing or corrupt.
        ConfigError: options that are out of range or contradict each other.
        DataError: there are no features, some are malformed, or another extractor made them; or
            `OUTPUT.partial` belongs to other options, or `output` is finished.
    """
    options = search_options(search)
    captioner = Captioner.load(checkpoint, backend=backend)
    captioner.check_features(features)
    store = open_store(features, captioner.feature_size, captioner.needs_boxes, sizes=image_sizes)
    image_ids = store.image_ids()
    if not image_ids:
        raise DataError(f"{features}: no ID.npy in cocobu_att/; expected one per image")
    settings = {"checkpoint": repr(checkpoint), "weights": captioner.checksum}
    settings |= {"features": str(features)}
    settings |= {key: str(value) for key, value in dataclasses.asdict(options).items()}
    settings |= {"candidates": candidates, "attention": attention}
    with CaptionStream(output, settings, overwrite=overwrite) as stream:
        remaining = [image_id for image_id in image_ids if image_id not in stream.done]
        if stream.done:
            images = counted(len(image_ids), "image")
            report(f"continuing: {len(stream.done)} of {images} captioned")
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
    photos: str | pathlib.Path | Sequence[str | pathlib.Path],
    output: str | pathlib.Path | None = None,
    *,
    batch_size: int = 16,
    strict: bool = False,
    candidates: bool = False,
    attention: bool = False,
    backend: str = "auto",
    overwrite: bool = False,
    report: Callable[[str], None] = print,
    **search: Any,
) -> dict[str, str]:
    """Caption photos and report each caption as it is found.

    Photos that cannot be read are left out, named on stderr, and end the call with an error once
    the others are captioned. With `output`, the same call continues after an interruption.

    Args:
        checkpoint: run directory or name of a captioner, or several for an ensemble.
        photos: files, folders or patterns, as `photos.images.list_photos` takes them.
        output: file to write too. `.jsonl` holds an entry a line: those of `caption_folder` with
            `"photo"`, its path, and the id in its name; `.json` holds `{path: caption}`, or
            `{path: entry}` with `candidates` or `attention`.
        batch_size: photos at a time.
        strict: whether to stop at the first photo that cannot be read.
        candidates: as in `caption_folder`.
        attention: as in `caption_folder`.
        backend: as in `caption_folder`.
        overwrite: as in `caption_folder`.
        report: takes one caption at a time, `PATH: caption`.
        **search: see `Captioner.caption_photos`.

    Returns:
        Captions by path.

    Raises:
        SparsecapError: the checkpoint, the extractor, a photo or an option is at fault.
    """
    check_names(search)
    captioner = Captioner.load(checkpoint, backend=backend)
    paths: dict[str, str | os.PathLike] = {}
    faults: dict[str, str] = {}
    for place in [photos] if isinstance(photos, str | os.PathLike) else photos:
        try:
            paths |= {photo_name(path): path for path in list_photos(place)}
        except DataError as error:
            if strict:
                raise
            faults[photo_name(place)] = str(error)

    def results(todo: Mapping[Any, str | os.PathLike]) -> Iterator[dict]:
        opened = open_photos(todo, captioner.extractor, batch_size, faults, skip_bad=not strict)
        while batch := dict(itertools.islice(opened, batch_size)):
            found = captioner.photo_candidates(batch.values(), attention=attention, **search)
            for name, captions in zip(batch, found, strict=True):
                image_id = image_id_from_filename(str(name))
                yield {"photo": name, **_entry(image_id, captions, candidates)}

    def by_path(entries: list[dict]) -> dict[str, Any]:
        whole = candidates or attention
        return {entry["photo"]: entry if whole else entry["caption"] for entry in entries}

    settings = {"checkpoint": repr(checkpoint), "weights": captioner.checksum}
    settings |= {"candidates": candidates, "attention": attention}
    settings |= {key: str(value) for key, value in search.items()}
    growing = CaptionStream(output, settings, "photo", overwrite) if output else nullcontext()
    with growing as stream:
        done = stream.done if stream else ()
        if done:
            count = len(paths.keys() & done)
            total = counted(len(paths), "photo")
            print(f"continuing: {count} of {total} captioned", file=sys.stderr)
        todo = {name: path for name, path in paths.items() if name not in done}
        entries, advice = [], stopping.CONTINUE if stream else ""
        for entry in stopping.between(results(todo), advice):
            entries.append(entry)
            if stream:
                stream.write(entry)
            report(f"{entry['photo']}: {entry['caption']}")
        kept = [name for name in paths if name not in faults]
        if stream and kept:
            entries = stream.finish(kept, by_path)
        elif stream:
            stream.discard()
    for fault in faults.values():
        print(f"left out: {fault}", file=sys.stderr)
    if faults:
        raise DataError(f"left out: {len(faults)}, captioned: {counted(len(entries), 'photo')}")
    return {entry["photo"]: entry["caption"] for entry in entries}


def _entry(image_id: ImageId, captions: list[Caption], candidates: bool) -> dict[str, Any]:
    entry = to_coco(image_id, best_caption(captions))
    if candidates:
        entry["candidates"] = [
            {"caption": one.text, "log_prob": finite(one.log_prob), "score": finite(one.score)}
            for one in captions
        ]
    return entry
