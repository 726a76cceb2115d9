"""Feature files of tab-separated rows: Anderson's bottom-up attention, LXMERT, VinVL and Oscar.

A row is one image, without a header; arrays are base64. The first read of a file notes where each
row begins; rows are read from there when they are asked for.
"""

import base64
import dataclasses
import json
import logging
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from sparsecap_jax.data.features import BOX_TOLERANCE, Arrays, IndexedStore, relative_boxes
from sparsecap_jax.data.records import ImageId, data_error, image_id_from_stem
from sparsecap_jax.errors import DataError

LAYOUTS = {
    6: ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features"),
    10: (
        *("img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf"),
        *("num_boxes", "boxes", "features"),
    ),
    2: ("image_id", "json"),
    3: ("image_id", "num_boxes", "features"),
}
"""Columns by their number: Anderson, LXMERT, VinVL/Oscar (JSON, or plain)."""

# Published bottom-up files have these rows twice, once cut short.
KNOWN_BROKEN = (147295, 300104, 321486)
_POSITION = 6  # VinVL appends x1, y1, x2, y2, w, h, divided by the image's size
_MAX_BOXES = 10_000
_NOT_JSON = 'expected JSON with "num_boxes" and "features"'
_NUM_BOXES = re.compile(rb'"num_boxes"\s*:\s*"?(\d{1,9})')


@dataclasses.dataclass(frozen=True)
class Row:
    """Place of a row: file, number from 1, bytes `start` to `end`; and its regions R."""

    path: pathlib.Path
    number: int
    start: int
    end: int
    num_boxes: int

    @property
    def where(self) -> str:
        """The place, for errors."""
        return f"{self.path}: row {self.number}"

    def read(self) -> bytes:
        """Read the row; opening the file anew costs little compared with reading it."""
        with data_error(f"{self.path}: cannot be read", OSError), self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(self.end - self.start)


class TsvStore(IndexedStore):
    """Rows of one `.tsv` file, or of all in a folder (`*.tsv`, `*.tsv.0`, ...).

    Broken rows (base64 that was cut short, a column too few) are skipped and reported: the
    published bottom-up files have three of them, whose images come again elsewhere. An image with
    no whole row counts as missing. VinVL rows are 2,048 features and 6 numbers of position: all of
    them with `feature_size` 2054, the features alone with 2048. Sizes of images are in the rows.
    """

    unit = "row"

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.broken: dict[ImageId, str] = {}
        self.paths = tsv_files(self.path)
        if not self.paths:
            raise DataError(f"{self.path}: no such .tsv file, nor a folder that holds some")

    def _load_index(self) -> dict[ImageId, Row]:
        index: dict[ImageId, Row] = {}
        for path in self.paths:
            for row, image_id, fault in _scan(path):
                if fault:
                    self.broken[image_id] = fault
                    continue
                other = index.setdefault(image_id, row)
                if other is not row and other.read() != row.read():
                    first = f"row {other.number} of {other.path}"
                    raise DataError(f"{row.where}: image id {image_id!r} is that of {first} too")
        if self.broken:
            lost = [i for i in self.broken if i not in index]
            known = " (known of the published files)" if {*self.broken} <= {*KNOWN_BROKEN} else ""
            logging.getLogger(__name__).warning(
                "%s: skipped %d broken rows%s, the images of %d come again; %s",
                *(self.path, len(self.broken), known, len(self.broken) - len(lost)),
                "; ".join(list(self.broken.values())[:3]),
            )
        if not index:
            fault = next(iter(self.broken.values()), "it is blank")
            raise DataError(f"{self.path}: holds no whole row: {fault}")
        return index

    def _count(self, key: Row, image_id: ImageId) -> int:
        return key.num_boxes

    def _read(self, key: Row, image_id: ImageId) -> Arrays:
        return read_row(key.read(), key.where, self.feature_size, self.need_boxes)


def tsv_files(path: pathlib.Path) -> list[pathlib.Path]:
    """Return the `.tsv` files that `path` is or holds."""
    if path.is_file():
        return [path]
    return sorted(p for p in path.glob("*.tsv*") if re.fullmatch(r".+\.tsv(\.\d+)?", p.name))


def read_row(line: bytes, where: str, feature_size: int, need_boxes: bool) -> Arrays:
    """Decode one row of any layout, boxes relative; DataError where it is faulty."""
    row: dict[str, Any] = _columns(line, where)
    if "json" in row:
        with data_error(f"{where}: broken JSON", ValueError, RecursionError):
            row = json.loads(row["json"])
        if not isinstance(row, dict) or not {"num_boxes", "features"} <= row.keys():
            raise DataError(f"{where}: {_NOT_JSON}")
        row = {name: row[name] for name in ("num_boxes", "features")}
    count = _number(row["num_boxes"], f"{where}: num_boxes")
    features = _floats(row["features"], count, f"{where}: features")
    boxes = None
    if "boxes" in row and need_boxes:
        prefix = "image" if "image_w" in row else "img"
        width = _number(row[f"{prefix}_w"], f"{where}: width")
        height = _number(row[f"{prefix}_h"], f"{where}: height")
        pixels = _floats(row["boxes"], count, f"{where}: boxes")
        boxes = relative_boxes(pixels, width, height, f"{where}: boxes")
    elif "boxes" not in row:
        position = features[:, -_POSITION:]
        if features.shape[1] - _POSITION != feature_size and need_boxes:
            outside = (position < -BOX_TOLERANCE) | (position > 1 + BOX_TOLERANCE)
            if features.shape[1] <= _POSITION or outside.any():
                raise DataError(f"{where}: boxes are needed, and the row has none")
        boxes = position[:, :4] if need_boxes else None
        if features.shape[1] == feature_size + _POSITION:
            features = features[:, :feature_size]
    return Arrays(features, boxes, None, where)


def _scan(path: pathlib.Path) -> Iterator[tuple[Row, ImageId, str]]:
    """Yield every row of a file, its image id, and its fault ("" if there is none)."""
    with data_error(f"{path}: cannot be read", OSError), path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise DataError(f"{path}: the file is empty, expected tab-separated rows")
        end = 0
        for number, line in enumerate(file, start=1):
            start, end = end, end + len(line)
            if not line.strip():
                continue
            row, image_id, fault = Row(path, number, start, end, 0), f"row {number}", ""
            try:
                image_id = _image_id(line.split(b"\t", 1)[0], row.where)
                row = dataclasses.replace(row, num_boxes=_check(line, row.where))
            except DataError as error:
                fault = str(error)
            yield row, image_id, fault


def _columns(line: bytes, where: str) -> dict[str, bytes]:
    """Return the columns of a row by name."""
    columns = line.rstrip(b"\r\n").split(b"\t")
    names = LAYOUTS.get(len(columns))
    if names is None:
        expected = "6 (bottom-up), 10 (LXMERT), 2 or 3 (VinVL)"
        raise DataError(f"{where}: {len(columns)} columns, expected {expected}")
    return dict(zip(names, columns, strict=True))


def _check(line: bytes, where: str) -> int:
    """Return the number of regions of a row, after checks that need no decoding."""
    row = _columns(line, where)
    if "json" in row:
        match = _NUM_BOXES.search(row["json"])
        if not match or not row["json"].endswith(b"}"):
            raise DataError(f"{where}: {_NOT_JSON}")
        return int(match.group(1))
    count = _number(row["num_boxes"], f"{where}: num_boxes")
    for name in ("boxes", "features"):
        if len(row.get(name, b"")) % 4:
            raise DataError(f"{where}: {name}: base64 that was cut short")
    return count


def _number(value: Any, where: str) -> int:
    try:
        number = int(value)
    except (ValueError, TypeError, OverflowError):
        number = -1
    if not 0 <= number <= 10**6:
        raise DataError(f"{where}: expected a count, found {value!r:.40}")
    return number


def _floats(text: Any, count: int, where: str) -> np.ndarray:
    """Decode base64 float32 `[count, ...]`."""
    if not 0 < count <= _MAX_BOXES:
        raise DataError(f"{where}: {count} regions, expected 1 to {_MAX_BOXES}")
    with data_error(f"{where}: not base64", TypeError, ValueError):
        data = base64.b64decode(text, validate=True)
    if not data or len(data) % (4 * count):
        raise DataError(f"{where}: {len(data)} bytes are not {count} rows of float32")
    return np.frombuffer(data, "<f4").reshape(count, -1)


def _image_id(name: bytes, where: str) -> ImageId:
    with data_error(f"{where}: the image id is not UTF-8", UnicodeDecodeError):
        text = name.decode("utf-8-sig").strip()
    if not text or len(text) > 500:
        raise DataError(f"{where}: expected an image id, found {text!r:.40}")
    return image_id_from_stem(text)
