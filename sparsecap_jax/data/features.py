"""Where region features come from: one interface, and the folders of `.npy` behind it."""

import dataclasses
import functools
import io
import math
import os
import pathlib
from collections.abc import Iterable
from tokenize import TokenError
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from sparsecap_jax.data.karpathy import ImageId, normalize_id
from sparsecap_jax.errors import ConfigError, DataError

# Relative boxes may leave [0, 1] by rounding, and by detectors that do not clip at the border.
BOX_TOLERANCE = 0.01
_MAX_HEADER = 10_000  # bytes, numpy's own limit
_MAX_LISTED = 10  # ids that an error message names, of perhaps 100,000


@dataclasses.dataclass(frozen=True)
class RegionFeatures:
    """What an image looks like to a model.

    Attributes:
        features: float32 `[R, D]`, R >= 1.
        boxes: float32 `[R, 4]`, corners x1, y1, x2, y2 divided by image width and height, or None.
        fc: float32 `[D]`, one vector for the whole image.
    """

    features: Float[np.ndarray, "R D"]
    boxes: Float[np.ndarray, "R 4"] | None
    fc: Float[np.ndarray, " D"]

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the arrays take."""
        boxes = 0 if self.boxes is None else self.boxes.nbytes
        return self.features.nbytes + boxes + self.fc.nbytes


@runtime_checkable
class FeatureStore(Protocol):
    """Region features by image id; safe to read from several threads."""

    feature_size: int

    def __getitem__(self, image_id: ImageId) -> RegionFeatures:
        """Read one image; DataError when it is absent or cannot be used."""

    def num_regions(self, image_id: ImageId) -> int:
        """Number of regions R of one image, without reading its features where possible."""

    def check(self, image_ids: Iterable[ImageId]) -> None:
        """Raise one DataError that tells of every id without features (contents are not read)."""


def validated(
    features: np.ndarray,
    boxes: np.ndarray | None,
    fc: np.ndarray | None,
    feature_size: int,
    names: tuple[str, str, str],
) -> RegionFeatures:
    """Check one image's arrays, as every store does, and convert them to float32.

    Args:
        features: floating `[R, D]`, or a grid `[h, w, D]`, which becomes `[h * w, D]`.
        boxes: floating `[R, 4]` relative corners, or None.
        fc: floating `[D]`, or None for the mean over regions.
        feature_size: the D that is expected.
        names: what to call features, boxes and fc in errors, file or record included.

    Raises:
        DataError: wrong rank, width or type, no regions, NaN or infinity, boxes that do not match.
    """
    features_name, boxes_name, fc_name = names
    if features.ndim not in (2, 3) or features.shape[-1] != feature_size:
        raise DataError(
            f"{features_name}: expected shape [R, {feature_size}] or [h, w, {feature_size}], "
            f"found {list(features.shape)}"
        )
    features = _as_float32(features.reshape(-1, feature_size), features_name)
    if not len(features):
        raise DataError(f"{features_name}: no regions, expected at least one")
    if fc is None:
        fc = features.mean(axis=0, dtype=np.float32)
    elif fc.shape != (feature_size,):
        raise DataError(f"{fc_name}: expected shape [{feature_size}], found {list(fc.shape)}")
    else:
        fc = _as_float32(fc, fc_name)
    if boxes is not None:
        boxes = _check_boxes(boxes, len(features), boxes_name)
    return RegionFeatures(features, boxes, fc)


def _as_float32(array: np.ndarray, where: str) -> np.ndarray:
    """Convert to contiguous float32; anything but finite numbers is an error."""
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, np.float32)
    finite = np.isfinite(array)
    if not finite.all():
        first = np.argwhere(~finite)[0].tolist()
        raise DataError(
            f"{where}: {np.size(finite) - np.count_nonzero(finite)} values are NaN or infinite "
            f"(or too large for float32), the first at {first}"
        )
    return array


def _check_boxes(boxes: np.ndarray, num_regions: int, where: str) -> np.ndarray:
    """Check relative corner boxes `[num_regions, 4]`; values are returned as they are."""
    if boxes.shape != (num_regions, 4):
        raise DataError(
            f"{where}: expected shape [{num_regions}, 4] to match the features, "
            f"found {list(boxes.shape)}"
        )
    boxes = _as_float32(boxes, where)
    outside = ((boxes < -BOX_TOLERANCE) | (boxes > 1 + BOX_TOLERANCE)).any(axis=1)
    if outside.any():
        row = int(outside.argmax())
        raise DataError(
            f"{where}: row {row} is {boxes[row].tolist()}, expected x1, y1, x2, y2 divided by "
            "image width and height, within [0, 1]"
        )
    flipped = (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
    if flipped.any():
        row = int(flipped.argmax())
        raise DataError(f"{where}: row {row} is {boxes[row].tolist()}, expected x1<=x2 and y1<=y2")
    return boxes


class NpyFolderStore:
    """Bottom-up features in folders of `.npy`, one file per image, named by image id.

    Layout below `directory`, or below `directory/bu`: `cocobu_att/ID.npy` float `[R, D]` (or
    `[h, w, D]`), `cocobu_box_relative/ID.npy` float `[R, 4]`, `cocobu_fc/ID.npy` float `[D]`. A
    missing fc file means the mean over regions. float16, float32 and float64 are read; pickled
    arrays never are. Folders are listed once, when first needed.

    Args:
        directory: the folder that holds `bu/`, or `cocobu_att/` itself.
        feature_size: width D of the features.
        need_boxes: read boxes, and require them for every image; otherwise `boxes` is None.

    Raises:
        DataError: `directory` does not have that layout.
    """

    def __init__(
        self, directory: str | os.PathLike, feature_size: int = 2048, need_boxes: bool = False
    ):
        if feature_size < 1:
            raise ConfigError(f"feature_size: expected at least 1, found {feature_size}")
        self.feature_size = feature_size
        self.need_boxes = need_boxes
        top = pathlib.Path(directory)
        root = next((r for r in (top / "bu", top) if (r / "cocobu_att").is_dir()), None)
        if root is None:
            raise DataError(f"{top}: holds neither bu/cocobu_att/ nor cocobu_att/")
        self._features = root / "cocobu_att"
        self._boxes = root / "cocobu_box_relative"
        self._fc = root / "cocobu_fc"
        if need_boxes and not self._boxes.is_dir():
            raise DataError(f"{self._boxes}: no such folder, but boxes are needed")
        self._names: dict[ImageId, str] | None = None
        self._counts: dict[ImageId, int] = {}

    def image_ids(self) -> list[ImageId]:
        """Ids of all feature files, integers first, each kind in order."""
        return sorted(self._list(), key=lambda id_: (isinstance(id_, str), id_))

    def check(self, image_ids: Iterable[ImageId]) -> None:
        """Raise one DataError that tells of every id whose feature or needed box file is absent."""
        names = self._list()
        ids = list(image_ids)
        _raise_missing(self._features, [i for i in ids if normalize_id(i) not in names], len(ids))
        if self.need_boxes:
            boxes = set(os.listdir(self._boxes))
            missing = [i for i in ids if names[normalize_id(i)] not in boxes]
            _raise_missing(self._boxes, missing, len(ids))

    def num_regions(self, image_id: ImageId) -> int:
        """Number of regions of one image, from the header of its feature file."""
        if image_id not in self._counts:
            path = self._features / self._name(image_id)
            with _open(path) as file:
                shape = _read_header(file, path)[0]
            self._counts[image_id] = math.prod(shape[:-1])
        return self._counts[image_id]

    def __getitem__(self, image_id: ImageId) -> RegionFeatures:
        """Read one image.

        Raises:
            DataError: no such id, or a file that is truncated, no `.npy`, of the wrong shape or
                type, not finite, or whose boxes do not match.
        """
        name = self._name(image_id)
        paths = self._features / name, self._boxes / name, self._fc / name
        features = _read_npy(paths[0])
        boxes = _read_npy(paths[1]) if self.need_boxes else None
        fc = _read_npy(paths[2]) if paths[2].is_file() else None
        names = f"{paths[0]}: features", f"{paths[1]}: boxes", f"{paths[2]}: fc"
        regions = validated(features, boxes, fc, self.feature_size, names)
        self._counts[image_id] = len(regions.features)
        return regions

    def _name(self, image_id: ImageId) -> str:
        """File name of an image."""
        name = self._list().get(normalize_id(image_id))
        if name is None:
            raise DataError(f"{self._features}: no features of image {image_id!r}")
        return name

    def _list(self) -> dict[ImageId, str]:
        """Image id -> file name, for all feature files. Only names in the folder can be reached."""
        if self._names is None:
            names: dict[ImageId, str] = {}
            for name in os.listdir(self._features):
                stem, extension = os.path.splitext(name)
                if extension != ".npy":
                    continue
                other = names.setdefault(normalize_id(stem), name)
                if other != name:
                    raise DataError(f"{self._features}: {other} and {name} are one image id")
            self._names = names
        return self._names


def _raise_missing(folder: pathlib.Path, missing: list[ImageId], total: int) -> None:
    """Raise one DataError about all `missing` ids, if there are any."""
    if missing:
        listed = ", ".join(map(str, missing[:_MAX_LISTED]))
        more = f" and {len(missing) - _MAX_LISTED} more" if len(missing) > _MAX_LISTED else ""
        raise DataError(f"{folder}: no file for {len(missing)} of {total} images: {listed}{more}")


def _open(path: pathlib.Path):
    """Open a file for reading bytes."""
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


@functools.lru_cache(maxsize=4096)
def _parse_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Parse a `.npy` header; folders hold few different ones, and parsing is as slow as reading."""
    file = io.BytesIO(header)
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"format version {version}")


def _read_header(file, path: pathlib.Path) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read a `.npy` header: shape, whether in Fortran order, floating dtype. Unpickles nothing."""
    if os.fstat(file.fileno()).st_size == 0:
        raise DataError(f"{path}: the file is empty, expected a .npy array")
    start = file.read(12)
    prefix = 10 if start[6:7] == b"\1" else 12  # since version 2 the length takes four bytes
    length = prefix + int.from_bytes(start[8:prefix], "little")
    file.seek(0)
    try:
        shape, fortran, dtype = _parse_header(file.read(min(length, _MAX_HEADER)))
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError, TokenError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{path}: not a .npy array: {reason}") from None
    if dtype.kind != "f" or dtype.itemsize > 8 or min(shape, default=0) < 0:
        raise DataError(
            f"{path}: expected an array of float16, float32 or float64, found {dtype} {list(shape)}"
        )
    return shape, fortran, dtype


def _read_npy(path: pathlib.Path) -> np.ndarray:
    """Read a floating `.npy` array, whose size is checked before memory is taken for it."""
    with _open(path) as file:
        shape, fortran, dtype = _read_header(file, path)
        expected = math.prod(shape) * dtype.itemsize
        found = os.fstat(file.fileno()).st_size - file.tell()
        if found != expected:
            problem = "truncated" if found < expected else "too long"
            raise DataError(
                f"{path}: {problem}: an array {list(shape)} of {dtype} takes {expected} bytes, "
                f"found {found}"
            )
        data = np.fromfile(file, dtype)
    return data.reshape(shape, order="F" if fortran else "C")
