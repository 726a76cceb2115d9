"""Extractors turn photos into regions: a registry, and EfficientNet-Lite0 over windows.

To add one, write a function from keyword options to an `Extractor` and `EXTRACTORS.register` it, or
name it as `MODULE:FUNCTION` after `settings.use_plugin(MODULE)`. Files of settings never import
anything.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from sparsecap_jax import settings
from sparsecap_jax.data.features import RegionFeatures
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.photos.images import squeeze
from sparsecap_jax.photos.lite0 import FEATURES, STRIDE, EfficientNetLite0, load_params
from sparsecap_jax.photos.windows import pooling_weights, window_boxes


@runtime_checkable
class Extractor(Protocol):
    """Turns photos into region features.

    Attributes:
        feature_size: width D of its features.
        settings: all that makes it again, as JSON values: `extractor`, its name, and its options.
            Features of different settings do not mix.
    """

    feature_size: int
    settings: Mapping[str, Any]

    def __call__(self, photos: Sequence[Image.Image]) -> list[RegionFeatures]:
        """Return the regions of upright RGB photos: features, relative boxes, fc."""


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
            f"{path}: extractor: no name; expected the settings that training on extracted "
            "features keeps, without which features of photos cannot be made for this run"
        )
    options = {key: value for key, value in noted.items() if key not in ("extractor", "half")}
    try:
        return make_extractor(noted["extractor"], **options)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows that Lite0 averages its map over.

    Attributes:
        size: photos are squeezed to `size x size`; the map has one cell for 32 x 32 pixels.
        grid: cells on each side of the grid; 0 for none.
        pyramid: windows on each side, for each level of the pyramid.
    """

    size: Annotated[int, settings.Range(STRIDE, 8192)] = 320
    grid: Annotated[int, settings.Range(0)] = 0
    pyramid: Annotated[tuple[int, ...], settings.Range(1)] = (1, 2, 3)

    def __post_init__(self):
        if self.size % STRIDE:
            raise ConfigError(f"size is {self.size}; expected a multiple of {STRIDE}")
        sides = (*self.pyramid, *([self.grid] if self.grid else []))
        if not sides or max(sides) > self.size // STRIDE:
            raise ConfigError(
                f"grid is {self.grid}, pyramid {self.pyramid}; expected at least one window, and "
                f"no side above the map's {self.size // STRIDE} cells"
            )


class Lite0:
    """Features of EfficientNet-Lite0's last map, averaged over windows; fc is the map's mean.

    Args:
        batch_size: photos of one call of the network; smaller batches are padded to it, so that it
            is compiled once.
        **windows: fields of `Windows`.

    Raises:
        ConfigError: windows that do not fit, or the published weights are not installed.
    """

    feature_size = FEATURES

    def __init__(self, *, batch_size: int = 16, **windows: Any):
        settings.check_range("extractor.batch_size", batch_size, settings.Range(1, 4096))
        self.windows = settings.build(Windows, windows, "extractor")
        values = dataclasses.asdict(self.windows)
        self.settings = {"extractor": "lite0", **values, "pyramid": list(self.windows.pyramid)}
        self.boxes = window_boxes(self.windows.grid, self.windows.pyramid)
        side = self.windows.size // STRIDE
        self._pooling = pooling_weights(self.boxes, side, side)
        self._params = jax.device_put(load_params())
        self._batch_size = batch_size

    def __call__(self, photos: Sequence[Image.Image]) -> list[RegionFeatures]:
        """Return the windows' features `[R, 1280]`, boxes `[R, 4]` and fc `[1280]` of photos."""
        regions = []
        for start in range(0, len(photos), self._batch_size):
            part = photos[start : start + self._batch_size]
            pixels = np.zeros((self._batch_size, *2 * [self.windows.size], 3), np.uint8)
            for row, photo in enumerate(part):
                pixels[row] = squeeze(photo, self.windows.size)
            features, fc = jax.device_get(_windows(self._params, pixels, self._pooling))
            regions += [RegionFeatures(features[i], self.boxes, fc[i]) for i in range(len(part))]
        return regions


@jax.jit
def _windows(params, pixels, pooling):
    """Pooled features `[B, R, D]` and means `[B, D]` of uint8 pixels `[B, S, S, 3]`."""
    scaled = (pixels.astype(jnp.float32) - 127.0) / 128.0
    maps = EfficientNetLite0().apply({"params": params}, scaled)
    cells = maps.reshape(len(maps), -1, FEATURES)
    return jnp.einsum("rn,bnd->brd", pooling, cells), cells.mean(axis=1)


def _torchvision(**options: Any) -> Extractor:
    from sparsecap_jax.photos.torchvision_detector import FasterRCNN

    return FasterRCNN(**options)


EXTRACTORS: settings.Registry[Callable[..., Extractor]] = settings.Registry(
    "extractor", {"lite0": Lite0, "torchvision": _torchvision}
)
