"""The caption explorer (`sparsecap report --html`): captions of several models on one page."""

import contextlib
import json
import os
import pathlib
import urllib.parse
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

from sparsecap_jax.commands._explorer_sources import (
    Model,
    Results,
    find_all_results,
    open_dataset,
    read_models,
)
from sparsecap_jax.data.features import FeatureStore
from sparsecap_jax.data.records import Record, find_pictures, image_id_from_filename
from sparsecap_jax.errors import DataError, SparsecapError
from sparsecap_jax.evaluation.caption_files import load_references
from sparsecap_jax.evaluation.metrics import load_groups
from sparsecap_jax.evaluation.pages import assemble, block, text_block
from sparsecap_jax.evaluation.pages.explorer import (
    marked_words,
    pack_regions,
    pictures_text,
    thumbnail,
)
from sparsecap_jax.files import write_atomically
from sparsecap_jax.text import counted, unicode_words

_CHUNK = 50  # images whose pictures, or regions, the page takes out at once


def write_explorer(
    sources: Sequence[str | pathlib.Path],
    html: str | pathlib.Path,
    *,
    references: str | pathlib.Path = "",
    images: str | pathlib.Path = "",
    link_images: bool = False,
    groups: str | pathlib.Path = "",
    changes: Sequence[str] = (),
    thumbnail_size: int = 256,
    title: str = "Captions",
    report: Callable[[str], None] = print,
) -> None:
    """Write a page that shows captions next to their images, references and scores.

    The page is one file that needs no network: pictures, regions and attention are in it.

    Args:
        sources: runs, whose results of all splits and searches are taken; folders that hold
            `captions.json`; files of captions.
        html: file to write.
        references: file of references; by default those of the first run's dataset. Without
            references no words are marked.
        images: folder of the pictures, which are found by their image id; by default that of the
            dataset. The frame of an image without picture is empty.
        link_images: whether the page names the pictures by their relative paths instead of
            holding small copies.
        groups: JSON file, `{image id: group}`, to filter by.
        changes: `data.FIELD=VALUE` for the dataset.
        thumbnail_size: longer side of small copies, in pixels.
        title: of the page.
        report: takes one line at a time.

    Raises:
        SparsecapError: a source is missing or broken, or has no results.
    """
    results = find_all_results(sources)
    runs = [found.run for found in results if found.run]
    records: dict[Hashable, Record] = {}
    store, folder = None, None
    if runs:
        dataset, has_boxes = open_dataset(runs[0], changes)
        records = {r.image_id: r for split in dataset.splits.values() for r in split}
        store, folder = dataset.store if has_boxes else None, dataset.images
    judges: Mapping[Hashable, Sequence[str]] = {
        image: record.raw for image, record in records.items()
    }
    if references:
        judges = load_references(references)
    models = read_models(results, judges, report)
    order = {image: number for number, image in enumerate(records)}
    keys = list(dict.fromkeys(image for model in models for image in model.captions))
    keys.sort(key=lambda image: order.get(image, len(order)))
    pictures = _find_pictures(keys, records, pathlib.Path(images) if images else folder)
    content = _content(models, keys, judges)
    content["splits"] = _splits(keys, records, results, models)
    members = load_groups(groups, keys) if groups else {}
    content["groups"] = [members.get(image, "") for image in keys]
    start = pathlib.Path(html).resolve().parent
    links = [_link(pictures.get(image), start) for image in keys] if link_images else None
    head, middle, tail = assemble(
        "explorer.html",
        styles=["page.css", "explorer.css"],
        scripts=["explorer_data.js", "explorer_cards.js", "explorer.js"],
        texts={"title": title},
        images="data: 'self' file:" if link_images else "data:",
    )
    with write_atomically(html) as file:
        file.write(head)
        content |= {"title": title, "links": links}
        file.write(block("data", json.dumps(content, ensure_ascii=False).encode()))
        file.write(middle)
        for number, chunk in _chunks(keys):
            file.write(block(f"regions-{number}", _regions(chunk, models, store)))
            if not link_images:
                copies = _copies(chunk, pictures, thumbnail_size, report)
                file.write(text_block(f"pictures-{number}", pictures_text(copies)))
        file.write(tail)
    missing = len(keys) - len(pictures)
    if missing:
        named = f"{missing} of {counted(len(keys), 'image')}: no picture, and an empty frame"
        report(f"{named}; --images=FOLDER names the folder of pictures")
    size = os.path.getsize(html) / 1e6
    shown = f"{counted(len(keys), 'image')}, {counted(len(models), 'model')}"
    report(f"wrote {html}: {shown}, {size:.1f} MB")


def _find_pictures(
    keys: Sequence[Hashable], records: Mapping[Hashable, Record], folder: pathlib.Path | None
) -> dict[Hashable, pathlib.Path]:
    """Return the files of pictures: by the names of the dataset, else by their ids."""
    if folder is None or not folder.is_dir():
        return {}
    found: dict[Hashable, pathlib.Path] = {}
    for image in keys:
        record = records.get(image)
        if record and record.filename:
            places = folder / record.folder / record.filename, folder / record.filename
            file = next(filter(pathlib.Path.is_file, places), None)
            found |= {image: file} if file else {}
    if len(found) < len(keys):
        by_id = {image_id_from_filename(path.name): path for path in find_pictures(folder)}
        found |= {image: by_id[image] for image in keys if image in by_id and image not in found}
    return found


def _splits(
    keys: Sequence[Hashable],
    records: Mapping[Hashable, Record],
    results: Sequence[Results],
    models: Sequence[Model],
) -> list[str]:
    """Return the split of each image: that of the dataset, else of its results."""
    only = {found.split for found in results}
    rest = only.pop() if len(only) == 1 else ""
    return [records[image].split if image in records else rest for image in keys]


def _content(
    models: Sequence[Model],
    keys: Sequence[Hashable],
    references: Mapping[Hashable, Sequence[str]],
) -> dict[str, Any]:
    """Return what the page shows, in columns; all but pictures, regions and attention."""
    judges = [[*references.get(image, ())] for image in keys]
    known = [{word for text in texts for word in unicode_words(text)} for texts in judges]
    columns = []
    for model in models:
        texts, unknown = [], []
        for image, words in zip(keys, known, strict=True):
            text = model.captions.get(image)
            places: list[int] = []
            if text is not None:
                text, places = marked_words(text, words)
            texts.append(text)
            unknown.append(places if words else [])
        metrics = dict.fromkeys(name for row in model.scores.values() for name in row)
        columns.append(
            {
                "name": model.name,
                "corpus": model.corpus,
                "captions": texts,
                "unknown": unknown,
                "scores": {name: [_cell(model, image, name) for image in keys] for name in metrics},
            }
        )
    return {"chunk": _CHUNK, "models": columns, "ids": [*map(str, keys)], "references": judges}


def _cell(model: Model, image: Hashable, name: str) -> float | None:
    value = model.scores.get(image, {}).get(name)
    return None if value is None else float(f"{value:.6g}")


def _link(path: pathlib.Path | None, start: pathlib.Path) -> str | None:
    """Return the relative URL of a picture."""
    if path is None:
        return None
    return urllib.parse.quote(os.path.relpath(path.resolve(), start).replace(os.sep, "/"))


def _chunks(keys: Sequence[Hashable]) -> Iterator[tuple[int, Sequence[Hashable]]]:
    for start in range(0, len(keys), _CHUNK):
        yield start // _CHUNK, keys[start : start + _CHUNK]


def _regions(keys: Sequence[Any], models: Sequence[Model], store: FeatureStore | None) -> bytes:
    """Return regions and attention of some images; those that cannot be read have none."""
    packed = []
    for image in keys:
        boxes = None
        with contextlib.suppress(SparsecapError):
            boxes = None if store is None else store[image].boxes
        packed.append(pack_regions(boxes, [model.attention.get(image) for model in models]))
    return b"".join(packed)


def _copies(
    keys: Sequence[Hashable],
    pictures: dict[Hashable, pathlib.Path],
    size: int,
    report: Callable[[str], None],
) -> Iterator[bytes | None]:
    """Yield small copies of pictures; those that cannot be read are removed from `pictures`."""
    for image in keys:
        copy = None
        if image in pictures:
            try:
                copy = thumbnail(pictures[image], size)
            except DataError as error:
                report(f"left out: {error}")
                del pictures[image]
        yield copy
