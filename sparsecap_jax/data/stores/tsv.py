"""Feature files of tab-separated rows: Anderson's bottom-up attention, LXMERT, VinVL and Oscar.

A row is one image, without a header; arrays are base64 of float32, float16 or float64, whichever
has the expected width, with or without padding, quotes and `b'...'`. The first read of a file notes
where each row begins; rows are read from there when they are asked for.
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
from sparsecap_jax.data.records import ImageId, data_error, field, image_id_from_stem
from sparsecap_jax.errors import DataError
from sparsecap_jax.files import open_regular, unique_keys

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
_MAX_ROW = 2**27  # bytes; so many boxes of 2,054 numbers take 110 MB
_NOT_JSON = 'expected JSON with "num_boxes" and "features", or with a "feature" of each object'
_NUM_BOXES = re.compile(rb'"num_boxes"\s*:\s*"?(\d{1,9})')
_FEATURE = re.compile(rb'"feature"\s*:')
_ITEM_SIZES = {"<f4": 4, "<f2": 2, "<f8": 8}


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
        with data_error(f"{self.path}: cannot be read", OSError), open_regular(self.path) as file:
            file.seek(self.start)
            return file.read(self.end - self.start)


class TsvStore(IndexedStore):
    """Rows of one `.tsv` file, or of all in a folder (`*.tsv`, `*.tsv.0`, ...).

    Broken rows (base64 that was cut short, a column too few) are skipped and reported: the
    published bottom-up files have three of them, whose images come again elsewhere. An image with
    no whole row counts as missing. VinVL rows are 2,048 features and 6 numbers of position: all of
    them with `feature_size` 2054, the features alone with 2048. Sizes of images are in the rows; of
    rows with one feature per object only in some, and in `sizes` otherwise.
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
            for row, image_id, fault in _scan(path, self.feature_size):
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
        size = (self.sizes or {}).get(image_id)
        return read_row(key.read(), key.where, self.feature_size, self.need_boxes, size)


def tsv_files(path: pathlib.Path) -> list[pathlib.Path]:
    """Return the `.tsv` files that `path` is or holds, without VinVL's labels and sizes."""
    if path.is_file():
        return [path]
    name = re.compile(r".+(?<!\.label)(?<!\.hw)\.tsv(\.\d+)?")
    return sorted(p for p in path.glob("*.tsv*") if name.fullmatch(p.name))


def read_row(
    line: bytes,
    where: str,
    feature_size: int,
    need_boxes: bool,
    size: tuple[int, int] | None = None,
) -> Arrays:
    """Decode one row of any layout, boxes relative; DataError where it is faulty.

    `size` is the image's, for rows that have boxes in pixels without it.
    """
    row: dict[str, Any] = _columns(line, where)
    if "json" in row:
        with data_error(f"{where}: broken JSON", ValueError, RecursionError):
            row = json.loads(row["json"], object_pairs_hook=unique_keys)
        if isinstance(row, dict) and "features" not in row and row.get("objects"):
            return _read_objects(row, where, feature_size, need_boxes, size)
        if not isinstance(row, dict) or not {"num_boxes", "features"} <= row.keys():
            raise DataError(f"{where}: {_NOT_JSON}")
        row = {name: row[name] for name in ("num_boxes", "features")}
    count = _number(row["num_boxes"], f"{where}: num_boxes")
    features = _floats([row["features"]], count, _widths(feature_size), f"{where}: features")
    boxes = None
    if "boxes" in row and need_boxes:
        prefix = "image" if "image_w" in row else "img"
        size = _size(row, prefix, where)
        pixels = _floats([row["boxes"]], count, (4,), f"{where}: boxes")
        boxes = relative_boxes(pixels, *size, f"{where}: boxes")
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


def _read_objects(
    row: dict[str, Any],
    where: str,
    feature_size: int,
    need_boxes: bool,
    size: tuple[int, int] | None,
) -> Arrays:
    """Decode a row of scene_graph_benchmark: `{"objects": [{"feature", "rect"}]}`."""
    objects = field(row, "objects", list, where)
    cells = [field(thing, "feature", str, f"{where}: objects") for thing in objects]
    features = _floats(cells, len(cells), (feature_size,), f"{where}: features")
    boxes = None
    if need_boxes:
        size = _size(row, "image", where) if "image_w" in row else size
        if size is None:
            raise DataError(f"{where}: boxes are in pixels; expected the sizes of the images too")
        corners = [field(thing, "rect", list, f"{where}: objects") for thing in objects]
        with data_error(f"{where}: rect", ValueError, TypeError, OverflowError):
            pixels = np.array(corners, np.float32)
        boxes = relative_boxes(pixels, *size, f"{where}: rect")
    return Arrays(features, boxes, None, where)


def _scan(path: pathlib.Path, feature_size: int) -> Iterator[tuple[Row, ImageId, str]]:
    """Yield every row of a file, its image id, and its fault ("" if there is none)."""
    with data_error(f"{path}: cannot be read", OSError), open_regular(path) as file:
        if not os.fstat(file.fileno()).st_size:
            raise DataError(f"{path}: the file is empty, expected tab-separated rows")
        end = 0
        for number, line in enumerate(iter(lambda: file.readline(_MAX_ROW), b""), start=1):
            if len(line) == _MAX_ROW:
                raise DataError(f"{path}: row {number}: over {_MAX_ROW} bytes, more than a row has")
            start, end = end, end + len(line)
            if line.isspace():
                continue
            row, fault = Row(path, number, start, end, 0), ""
            image_id: ImageId = f"row {number}"
            try:
                image_id = _image_id(line[:2048].split(b"\t", 1)[0], row.where)
                row = dataclasses.replace(row, num_boxes=_check(line, row.where, feature_size))
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


def _check(line: bytes, where: str, feature_size: int) -> int:
    """Return the number of regions of a row, after checks that need no decoding."""
    row = _columns(line, where)
    if "json" in row:
        match = _NUM_BOXES.search(row["json"])
        count = int(match.group(1)) if match else len(_FEATURE.findall(row["json"]))
        if not (match or count) or not row["json"].endswith(b"}"):
            raise DataError(f"{where}: {_NOT_JSON}")
        return count
    count = _number(row["num_boxes"], f"{where}: num_boxes")
    for name, widths in (("boxes", (4,)), ("features", _widths(feature_size))):
        length = len(_unquoted(row.get(name, b"")))
        if length % 4 and not _dtype(length * 3 // 4, count, widths):
            raise DataError(f"{where}: {name}: base64 that was cut short")
    return count


def _widths(feature_size: int) -> tuple[int, ...]:
    return feature_size, feature_size + _POSITION


def _size(row: dict[str, Any], prefix: str, where: str) -> tuple[int, int]:
    return (
        _number(row[f"{prefix}_w"], f"{where}: width"),
        _number(row.get(f"{prefix}_h"), f"{where}: height"),
    )


def _number(value: Any, where: str) -> int:
    try:
        number = float(value)
    except (ValueError, TypeError, OverflowError):
        number = -1
    if not 0 <= number <= 10**6 or not number.is_integer():
        raise DataError(f"{where}: expected a count, found {value!r:.40}")
    return int(number)


def _unquoted(text: bytes) -> bytes:
    """Return a cell without quotes, or what Python's `str` makes of bytes."""
    return text.removeprefix(b"b").strip(b"'\"") if text[-1:] in (b"'", b'"') else text


def _dtype(size: int, count: int, widths: tuple[int, ...]) -> str:
    """Return the type of which `size` bytes are `count` rows of one of `widths`; "" for none."""
    sizes = ((d, count * width * n) for d, n in _ITEM_SIZES.items() for width in widths)
    return next((dtype for dtype, expected in sizes if expected == size), "")


def _floats(cells: list[Any], count: int, widths: tuple[int, ...], where: str) -> np.ndarray:
    """Decode base64 `[count, ...]`, one of `widths` wide if possible; float32 if in doubt."""
    if not 0 < count <= _MAX_BOXES:
        raise DataError(f"{where}: {count} regions, expected 1 to {_MAX_BOXES}")
    with data_error(f"{where}: not base64", TypeError, ValueError, AttributeError):
        texts = (cell if isinstance(cell, bytes) else cell.encode() for cell in cells)
        data = b"".join(_decoded(_unquoted(text)) for text in texts)
    dtype = _dtype(len(data), count, widths) or "<f4"
    if not data or len(data) % (_ITEM_SIZES[dtype] * count):
        raise DataError(f"{where}: {len(data)} bytes are not {count} rows of float32")
    return np.frombuffer(data, dtype).reshape(count, -1)


def _decoded(text: bytes) -> bytes:
    return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)


def _image_id(name: bytes, where: str) -> ImageId:
    with data_error(f"{where}: the image id is not UTF-8", UnicodeDecodeError):
        text = name.decode("utf-8-sig").strip()
    if not text or len(text) > 500:
        raise DataError(f"{where}: expected an image id, found {text!r:.40}")
    return image_id_from_stem(text)
