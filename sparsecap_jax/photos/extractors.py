"""Extractors turn photos into regions: EfficientNet-Lite over windows, torchvision's detector.

To add one, write a function from keyword options to an `Extractor` and `EXTRACTORS.register` it, or
name it as `MODULE:FUNCTION` after `settings.use_plugin(MODULE)`. Files of settings never import
anything.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from PIL import Image

from sparsecap_jax import settings
from sparsecap_jax.data.features import RegionFeatures
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.photos.efficientnet_lite import (
    FEATURES,
    NETWORKS,
    STRIDE,
    last_map,
    load_params,
    scaled,
)
from sparsecap_jax.photos.images import Photo, open_photo, squeeze

_SIDE = 1333  # longest side of a picture in torchvision's detectors
_MAX_POOLING = 2**24  # windows times cells of the map
_MAX_PIXELS = 2**26  # of a batch
_MAX_LEVELS = 32

FEW = 8
"""Photos at a time for which the network is not compiled."""


@runtime_checkable
class Extractor(Protocol):
    """Turns photos into region features.

    Attributes:
        feature_size: width D of its features.
        settings: all that makes it again, as JSON values: `extractor`, its name, and its options.
            Features of different settings do not mix.

    An extractor may also offer `shrink(photo)`: it returns a photo no larger than the extractor
    needs it, so that a batch of large ones is not held in full. Its factory may name options that
    files may not set in `never_noted`.
    """

    feature_size: int
    settings: Mapping[str, Any]

    def __call__(self, photos: Sequence[Image.Image]) -> list[RegionFeatures]:
        """Return the regions of upright RGB photos: features, relative boxes, fc."""


def open_for(extractor: Extractor, photo: Photo, **limits: int) -> Image.Image:
    """Return a photo as `open_photo` reads it, shrunk where the extractor offers that."""
    shrink = getattr(extractor, "shrink", lambda photo: photo)
    return shrink(open_photo(photo, **limits))


def make_extractor(name: str, /, **options: Any) -> Extractor:
    """Make the extractor of a key of `EXTRACTORS`, or `MODULE:FUNCTION` of a trusted plugin.

    Raises:
        ConfigError: no such extractor, an unknown option, or a package that it needs is missing.
    """
    factory = EXTRACTORS[name]
    try:
        return factory(**options)
    except ImportError as error:
        raise ConfigError(f"extractor {name!r} cannot be imported: {error}") from error
    except TypeError as error:
        raise ConfigError(f"extractor {name!r}: {error}") from error


def remake_extractor(noted: Any, path: str | os.PathLike = "extractor.json") -> Extractor:
    """Make the extractor that the content of an untrusted `extractor.json` (`path`) names.

    Raises:
        ConfigError: no extractor is named, it is neither registered nor of a trusted plugin, or it
            cannot be made here.
    """
    if not isinstance(noted, Mapping) or not isinstance(noted.get("extractor"), str):
        raise ConfigError(
            f"{path}: extractor: no name; the run was not trained on photos, and captions features "
            "alone (--features=DIR)"
        )
    options = {key: value for key, value in noted.items() if key not in ("extractor", "half")}
    try:
        factory = EXTRACTORS[noted["extractor"]]
        factory = getattr(factory, "func", factory)  # of a `functools.partial`
        for key in getattr(factory, "never_noted", ()):
            if key in noted:
                found = f"extractor.{key} is {noted[key]!r:.80}"
                raise ConfigError(f"{found}; only the user may set it, expected none in a file")
        return make_extractor(noted["extractor"], **options)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Windows:
    """Options of `Lite`: the windows that it averages its map over, and the size of a batch.

    Attributes:
        size: photos are squeezed to `size x size`; the map has one cell for 32 x 32 pixels.
        grid: cells on each side of the grid; 0 for none.
        pyramid: windows on each side, for each level of the pyramid.
        batch_size: photos of one call of the network; smaller batches are padded to it, so that it
            is compiled once.
        scale: factor of all features. The network's own have a standard deviation of 0.4, and with
            3 captioners learn several times as fast from them.
    """

    size: Annotated[int, settings.Range(STRIDE, 8192)] = 320
    grid: Annotated[int, settings.Range(0)] = 0
    pyramid: Annotated[tuple[int, ...], settings.Range(1)] = (1, 2, 3)
    batch_size: Annotated[int, settings.Range(1, 4096)] = 16
    scale: Annotated[float, settings.Range(1e-3, 1e3)] = 1.0

    def __post_init__(self):
        if self.size % STRIDE:
            raise ConfigError(f"size is {self.size}; expected a multiple of {STRIDE}")
        sides = (*self.pyramid, *([self.grid] if self.grid else []))
        if not sides or max(sides) > self.size // STRIDE:
            raise ConfigError(
                f"grid is {self.grid}, pyramid {self.pyramid}; expected at least one window, and "
                f"no side above the map's {self.size // STRIDE} cells"
            )
        windows, cells = sum(side**2 for side in sides), (self.size // STRIDE) ** 2
        if len(self.pyramid) > _MAX_LEVELS or windows * cells > _MAX_POOLING:
            raise ConfigError(
                f"{windows} windows in {len(self.pyramid)} levels over {cells} cells of the map; "
                f"expected at most {_MAX_LEVELS} levels, and {_MAX_POOLING} windows times cells"
            )
        if self.size**2 * self.batch_size > _MAX_PIXELS:
            raise ConfigError(
                f"batch_size is {self.batch_size}, size {self.size}; expected at most "
                f"{_MAX_PIXELS} pixels in a batch"
            )


class Lite:
    """Features of EfficientNet-Lite's last map, averaged over windows; fc is the map's mean.

    Args:
        network: a key of `NETWORKS`.
        **options: fields of `Windows`.

    Raises:
        ConfigError: windows that do not fit, or the published weights are not installed.
    """

    feature_size = FEATURES
    never_noted = ("batch_size",)

    def __init__(self, network: str, /, **options: Any):
        self.windows = windows = settings.build(Windows, options, "extractor")
        values = {"size": windows.size, "grid": windows.grid, "pyramid": list(windows.pyramid)}
        if windows.scale != 1:  # older folders do not note it
            values["scale"] = windows.scale
        self.settings: Mapping[str, Any] = {"extractor": network, **values}
        self.boxes = window_boxes(windows.grid, windows.pyramid)
        self._pooling = pooling_weights(self.boxes, *2 * [windows.size // STRIDE])
        self._network, self._params = network, load_params(network)
        self._compiled: Callable | None = None

    def shrink(self, photo: Image.Image) -> Image.Image:
        """Return the photo as the network sees it."""
        return Image.fromarray(squeeze(photo, self.windows.size))

    def __call__(self, photos: Sequence[Image.Image]) -> list[RegionFeatures]:
        """Return the windows' features `[R, 1280]`, boxes `[R, 4]` and fc `[1280]` of photos.

        Up to `FEW` photos are worked on by NumPy, which starts at once; more are worth compiling
        the network. Features differ by rounding alone.
        """
        if self._compiled is None and len(photos) <= FEW:
            return [self._one(photo) for photo in photos]
        if self._compiled is None:
            from sparsecap_jax.photos.efficientnet_linen import compiled_windows

            self._compiled = compiled_windows(self._network, self._params, self._pooling)
        regions, side, count = [], self.windows.size, self.windows.batch_size
        for start in range(0, len(photos), count):
            part = photos[start : start + count]
            pixels = np.zeros((count, side, side, 3), np.uint8)
            for row, photo in enumerate(part):
                pixels[row] = squeeze(photo, side)
            features, fc = (self.windows.scale * array for array in self._compiled(pixels))
            regions += [RegionFeatures(features[i], self.boxes, fc[i]) for i in range(len(part))]
        return regions

    def _one(self, photo: Image.Image) -> RegionFeatures:
        pixels = np.asarray(squeeze(photo, self.windows.size), np.float32)
        cells = last_map(self._network, self._params, scaled(pixels)).reshape(-1, FEATURES)
        cells *= np.float32(self.windows.scale)
        return RegionFeatures(self._pooling @ cells, self.boxes, cells.mean(axis=0))


@dataclasses.dataclass(frozen=True)
class Detections:
    """Options of `FasterRCNN`: the boxes that it keeps.

    Attributes:
        max_regions: boxes kept per photo; without any, the whole photo is the only box.
        min_score: boxes below this score are left out.
    """

    max_regions: Annotated[int, settings.Range(1, 1000)] = 36
    min_score: Annotated[float, settings.Range(0, 1)] = 0.2


class FasterRCNN:
    """torchvision's Faster R-CNN, ResNet-50 with feature pyramid, of COCO's 91 classes.

    It needs the extra `torchvision`. Features are the 1,024 numbers of the box head for each box
    that is left after non-maximum suppression, best first.

    Args:
        weights: a state dict; by default the file `SPARSECAP_DETECTOR_WEIGHTS`, or torchvision's
            download; "random" for none.
        **options: fields of `Detections`.
    """

    feature_size = 1024
    never_noted = ("weights",)

    def __init__(self, *, weights: str = "", **options: Any):
        boxes = settings.build(Detections, options, "extractor")
        for package in ("torch", "torchvision"):
            settings.optional_package(package, "torchvision", "extractor 'torchvision'")
        import torch
        from torchvision.models import detection

        weights = weights or os.environ.get("SPARSECAP_DETECTOR_WEIGHTS", "")
        if weights not in ("", "random") and not os.path.isfile(weights):
            raise ConfigError(f"detector weights: {weights}: no such file; expected a state dict")
        self.settings: Mapping[str, Any] = {"extractor": "torchvision", **dataclasses.asdict(boxes)}
        self._torch = torch
        self._model = detection.fasterrcnn_resnet50_fpn(
            weights=None if weights else "DEFAULT",
            weights_backbone=None,
            box_score_thresh=boxes.min_score,
            box_detections_per_img=boxes.max_regions,
        ).eval()
        if weights not in ("", "random"):
            self._model.load_state_dict(torch.load(weights, weights_only=True))

    @staticmethod
    def shrink(photo: Image.Image) -> Image.Image:
        """Shrink a photo to twice the sides that torchvision shrinks it to."""
        small = photo.copy()
        small.thumbnail((2 * _SIDE, 2 * _SIDE))
        return small

    def __call__(self, photos: Sequence[Image.Image]) -> list[RegionFeatures]:
        """Return the boxes' features `[R, 1024]`, boxes `[R, 4]` and the mean of the features."""
        return [self._extract(photo) for photo in photos]

    def _extract(self, photo: Image.Image) -> RegionFeatures:
        torch, model = self._torch, self._model
        pixels = torch.from_numpy(np.asarray(photo, np.float32).transpose(2, 0, 1) / 255)
        with torch.no_grad():
            images, _ = model.transform([pixels])
            maps = model.backbone(images.tensors)
            proposals, _ = model.rpn(images, maps)
            (detections,), _ = model.roi_heads(maps, proposals, images.image_sizes)
            height, width = images.image_sizes[0]
            boxes = detections["boxes"]
            if not len(boxes):
                boxes = torch.tensor([[0.0, 0.0, float(width), float(height)]])
            pooled = model.roi_heads.box_roi_pool(maps, [boxes], images.image_sizes)
            features = model.roi_heads.box_head(pooled).numpy()
        relative = boxes.numpy() / np.array([width, height, width, height], np.float32)
        return RegionFeatures(features, relative.clip(0, 1), features.mean(axis=0))


def grid_boxes(rows: int, columns: int) -> Float[np.ndarray, "R 4"]:
    """Return boxes of equal cells, row by row: x1, y1, x2, y2 divided by width and height."""
    y, x = np.divmod(np.arange(rows * columns), columns)
    corners = x / columns, y / rows, (x + 1) / columns, (y + 1) / rows
    return np.stack(corners, axis=1).astype(np.float32)


def window_boxes(grid: int, pyramid: Sequence[int]) -> Float[np.ndarray, "R 4"]:
    """Return boxes of the pyramid's windows, level by level, then of a grid's cells.

    `pyramid` holds the windows on each side of each level, `grid` the cells on each side or 0.
    """
    sides = [*pyramid, grid] if grid else list(pyramid)
    return np.concatenate([grid_boxes(side, side) for side in sides])


def pooling_weights(
    boxes: Float[np.ndarray, "R 4"], height: int, width: int
) -> Float[np.ndarray, "R N"]:
    """Return weights that average a `height x width` map over relative boxes; rows sum to 1.

    A cell counts by the area that it shares with the box; x1 < x2 and y1 < y2.
    """
    across = _shares(boxes[:, 0], boxes[:, 2], width)
    down = _shares(boxes[:, 1], boxes[:, 3], height)
    return np.einsum("rh,rw->rhw", down, across).reshape(len(boxes), -1).astype(np.float32)


def _shares(low: np.ndarray, high: np.ndarray, cells: int) -> np.ndarray:
    """Return the share of each interval in each of `cells` equal cells of [0, 1]."""
    edges = np.arange(cells + 1) / cells
    low, high = low[:, None].astype(np.float64), high[:, None].astype(np.float64)
    overlap = np.minimum(high, edges[1:]) - np.maximum(low, edges[:-1])
    return np.maximum(overlap, 0) / (high - low)


EXTRACTORS: settings.Registry[Callable[..., Extractor]] = settings.Registry(
    "extractor",
    {**{n: functools.partial(Lite, n) for n in NETWORKS}, "torchvision": FasterRCNN},
)
