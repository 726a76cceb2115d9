"""Conversion of any feature store to ArrayRecord: in shards, resumable, with checksums.

Every finished shard has a description of its own (`features-00000.json`) until all are finished;
then the manifest replaces them. So a conversion that was stopped continues with its last shard.
"""

import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from sparsecap_jax import stopping
from sparsecap_jax.data.features import IndexedStore
from sparsecap_jax.data.records import Faults, ImageId
from sparsecap_jax.data.stores.array_records import (
    DTYPES,
    MANIFEST,
    VERSION,
    check_shard,
    encode,
    load_manifest,
)
from sparsecap_jax.errors import ConfigError, DataError
from sparsecap_jax.files import LIST_BYTES, named_errors, read_json, write_atomically
from sparsecap_jax.text import counted

_WRITER_OPTIONS = "group_size:1,uncompressed"  # read one by one, in any order
_MB = 2**20


def convert(
    store: IndexedStore,
    output: str | pathlib.Path,
    *,
    image_ids: Sequence[ImageId] | None = None,
    dtype: str = "float32",
    shard_size: int = 500,
    skip_bad: bool = False,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Write the images of a store as ArrayRecord shards.

    Args:
        store: the store to read.
        output: folder to write to; continues what an earlier call of the same arguments began.
        image_ids: the images, in this order; None for all, in order of their ids.
        dtype: "float32", which is exact, or "float16", which halves the size.
        shard_size: images per shard.
        skip_bad: leave out images that cannot be read, log and count them.
        report: takes one line of progress at a time.

    Returns:
        The manifest.

    Raises:
        ConfigError: a faulty option, or `output` holds a conversion of something else.
        DataError: an image cannot be read; finished shards stay.
    """
    if dtype not in DTYPES or shard_size < 1:
        dtypes = ", ".join(DTYPES)
        raise ConfigError(f"expected dtype {dtypes} and a shard_size, found {dtype}, {shard_size}")
    output = pathlib.Path(output)
    ids = list(store.image_ids() if image_ids is None else image_ids)
    if not skip_bad:
        store.check(ids)
    options = {"feature_size": store.feature_size, "dtype": dtype, "boxes": store.need_boxes}
    plan = hashlib.sha256(json.dumps([options, shard_size, ids]).encode()).hexdigest()
    if (output / MANIFEST).exists():
        manifest = _check_plan(output, load_manifest(output), plan)
        report(f"{output}: was finished already")
        return manifest
    faults = Faults(skip_bad, "--skip_bad")
    shards, start, done = [], time.monotonic(), 0
    for number, first in enumerate(range(0, len(ids), shard_size)):
        name = f"features-{number:05d}.array_record"
        part = ids[first : first + shard_size]
        shard = _resumed(output / name, plan)
        if shard is None:
            with named_errors(output / name):
                shard = _write_shard(store, output / name, part, dtype, faults)
            shard = {"plan": plan, **shard}
            with write_atomically((output / name).with_suffix(".json")) as file:
                json.dump(shard, file)
            done += shard["bytes"]
        shards.append({key: value for key, value in shard.items() if key != "plan"})
        rate = done / _MB / max(time.monotonic() - start, 1e-9)
        report(f"{first + len(part):,}/{len(ids):,} images | {rate:.0f} MB/s")
    faults.report(store.path)
    images = sum(len(shard["ids"]) for shard in shards)
    if not images:
        raise DataError(f"{store.path}: no image of it can be converted")
    manifest = {"version": VERSION, **options, "plan": plan, "skipped": faults.count}
    manifest |= {"source": type(store).__name__, "images": images, "shards": shards}
    with write_atomically(output / MANIFEST) as file:
        json.dump(manifest, file)
    for path in output.glob("features-*.json"):
        path.unlink()
    shown = f"{counted(images, 'image')} in {counted(len(shards), 'shard')}"
    report(f"wrote {output / MANIFEST}: {shown}")
    return manifest


def _check_plan(folder: pathlib.Path, content: Any, plan: str) -> dict[str, Any]:
    if not isinstance(content, dict) or content.get("plan") != plan:
        raise ConfigError(
            f"{folder}: holds a conversion of other images or options; expected a new folder"
        )
    return content


def _resumed(path: pathlib.Path, plan: str) -> dict[str, Any] | None:
    """Return the description of a shard that an earlier call of the same plan finished."""
    description = path.with_suffix(".json")
    if not (description.exists() and path.exists()):
        return None
    content = read_json(description, "a finished shard", max_bytes=LIST_BYTES)
    shard = _check_plan(path.parent, content, plan)
    check_shard(shard, str(description))
    whole = "sha256" in shard and path.stat().st_size == shard.get("bytes")
    return shard if whole else None


def _write_shard(
    store: IndexedStore, path: pathlib.Path, ids: Sequence[ImageId], dtype: str, faults: Faults
) -> dict[str, Any]:
    """Write one shard, all or nothing."""
    from array_record.python.array_record_module import ArrayRecordWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    kept, regions = [], []
    writer = ArrayRecordWriter(str(partial), _WRITER_OPTIONS)
    try:
        for image_id in stopping.between(ids):
            try:
                image = store[image_id]
                record = encode(image_id, image, dtype)
            except DataError as error:
                faults.add(error)
                continue
            writer.write(record)
            kept.append(image_id)
            regions.append(len(image.features))
        writer.close()
        digest, size = checksum(partial)
        partial.replace(path)
    except BaseException:
        try:
            if writer.is_open():
                writer.close()  # fails where the disk is full
        finally:
            partial.unlink(missing_ok=True)
        raise
    return {"file": path.name, "ids": kept, "regions": regions, "bytes": size, "sha256": digest}


def checksum(path: pathlib.Path) -> tuple[str, int]:
    """Return SHA-256 and size of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size


def verify(directory: str | pathlib.Path) -> list[str]:
    """Compare every shard with its checksum in the manifest; return one line per fault."""
    directory = pathlib.Path(directory)
    faults = []
    for shard in load_manifest(directory)["shards"]:
        path = directory / shard["file"]
        if not path.is_file():
            faults.append(f"{path}: no such file")
        elif checksum(path) != (shard.get("sha256"), shard.get("bytes")):
            faults.append(f"{path}: its checksum is not that of {MANIFEST}")
    return faults
