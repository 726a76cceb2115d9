"""Extraction of the features of a folder of photos, into the layout that training reads.

It writes `OUTPUT/cocobu_att/ID.npy`, `cocobu_box_relative/ID.npy` and `cocobu_fc/ID.npy` for each
photo, and `extractor.json`, the settings that made them.
"""

import itertools
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image

from sparsecap_jax import stopping
from sparsecap_jax.arrays import to_npy
from sparsecap_jax.data.batches import read_ahead
from sparsecap_jax.data.extractor_notes import EXTRACTOR
from sparsecap_jax.data.features import RegionFeatures, validated
from sparsecap_jax.data.records import ImageId, image_id_from_filename, skip_advice
from sparsecap_jax.errors import ConfigError, DataError
from sparsecap_jax.files import absent, read_settings, write_atomically, write_json
from sparsecap_jax.photos.extractors import Extractor, open_for
from sparsecap_jax.photos.images import list_photos, photo_name
from sparsecap_jax.text import counted

# In the order of writing: a photo with a file in the last one is finished.
FOLDERS = ("cocobu_box_relative", "cocobu_fc", "cocobu_att")


class Extracted(NamedTuple):
    """Result of `extract_folder`: numbers of photos, and the faulty ones with their reasons."""

    done: int
    skipped: int
    faults: dict[str, str]


def find_photos(folder: str | os.PathLike) -> dict[ImageId, pathlib.Path]:
    """Return photos by image id, sorted by path; DataError where none, or two of one id, exist."""
    if not os.path.isdir(folder):
        raise DataError(absent(folder, "a folder of photos"))
    photos: dict[ImageId, pathlib.Path] = {}
    for path in map(pathlib.Path, list_photos(folder)):
        other = photos.setdefault(image_id_from_filename(path.name), path)
        if other != path:
            raise DataError(f"{folder}: {other.name} and {path.name} are one image id")
    return photos


def extract_folder(
    images: str | os.PathLike,
    output: str | os.PathLike,
    extractor: Extractor,
    *,
    batch_size: int = 16,
    half: bool = False,
    skip_bad: bool = False,
    report: Callable[[str], None] = print,
) -> Extracted:
    """Extract the features of every photo in a folder; continue where an earlier call stopped.

    Args:
        images: folder of photos, folders in it included.
        output: folder to write to.
        extractor: see `extractors`.
        batch_size: photos given to it at a time.
        half: whether features are stored as float16.
        skip_bad: whether to continue after a photo that cannot be read, and report it at the end.
        report: takes one line at a time.

    Raises:
        DataError: a photo cannot be read (without `skip_bad`), or there are none.
        ConfigError: `output` was begun with other settings.
    """
    photos, output = find_photos(images), pathlib.Path(output)
    settings, path = {**extractor.settings, "half": half}, output / EXTRACTOR
    begun = read_settings(path) if path.exists() else settings
    if begun != settings:
        raise ConfigError(
            f"{path}: begun with {begun}; expected the same settings instead of {settings}, or a "
            "new folder"
        )
    write_json(path, settings)
    finished = {path.stem for path in (output / FOLDERS[-1]).glob("*.npy")}
    todo = {key: path for key, path in photos.items() if str(key) not in finished}
    skipped, done, start = len(photos) - len(todo), 0, time.monotonic()
    faults: dict[str, str] = {}
    if skipped:
        report(f"features already: {skipped} of {counted(len(photos), 'photo')}")
    advice = skip_advice("--skip_bad")
    opened = open_photos(todo, extractor, 2 * batch_size, faults, skip_bad, advice)
    batches = iter(lambda: dict(itertools.islice(opened, batch_size)), {})
    for batch in stopping.between(batches):
        for image_id, regions in zip(batch, extractor([*batch.values()]), strict=True):
            _write(output, image_id, regions, extractor.feature_size, half)
        done += len(batch)
        rate = done / (time.monotonic() - start)
        left = (len(todo) - done - len(faults)) / rate
        report(f"{skipped + done}/{len(photos)} photos | {rate:.1f} photos/s | {left:.0f} s left")
    for fault in faults.values():
        report(f"left out: {fault}")
    report(f"wrote {output}: {counted(skipped + done, 'photo')}, {len(faults)} left out")
    return Extracted(done, skipped, faults)


def open_photos(
    photos: Mapping[ImageId, str | os.PathLike],
    extractor: Extractor,
    ahead: int,
    faults: dict[str, str],
    skip_bad: bool,
    advice: str = "",
) -> Iterator[tuple[ImageId, Image.Image]]:
    """Yield the keys of `photos` and the pictures, the next ones being read meanwhile.

    Each is shrunk as soon as it is read (see `open_for`). With `skip_bad`, photos that cannot be
    read are left out, and why is noted in `faults` by path; else `advice` follows the error.
    """
    with ThreadPoolExecutor(2, thread_name_prefix="photos") as executor:
        submit = executor.submit
        futures = ((key, submit(open_for, extractor, path)) for key, path in photos.items())
        for image_id, photo in read_ahead(futures, ahead):
            try:
                yield image_id, photo.result()
            except DataError as error:
                if not skip_bad:
                    raise DataError(f"{error}{advice}") from error
                faults[photo_name(photos[image_id])] = str(error)


def _write(
    output: pathlib.Path, image_id: ImageId, regions: RegionFeatures, width: int, half: bool
) -> None:
    where = f"extractor, image {image_id}"
    names = f"{where}: features", f"{where}: boxes", f"{where}: fc"
    regions = validated(regions.features, regions.boxes, regions.fc, width, names)
    dtype = np.float16 if half else np.float32
    arrays = (regions.boxes, regions.fc.astype(dtype), regions.features.astype(dtype))
    for folder, array in zip(FOLDERS, arrays, strict=True):
        if array is not None:
            with write_atomically(output / folder / f"{image_id}.npy", "wb") as file:
                file.write(to_npy(array))
