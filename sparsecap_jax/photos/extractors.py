"""What turns photos into regions: a registry, and EfficientNet-Lite0 over windows.

An extractor is an object with `feature_size`, `settings` and `__call__`, see `Extractor`. To add
one, write a function from keyword options to such an object, and name it as `MODULE:FUNCTION`, or
add a line to `EXTRACTORS`.
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

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
        settings: what makes it again: `extractor`, its name, and its options, all JSON values.
            Features of different settings do not mix.
    """

    feature_size: int
    settings: Mapping[str, Any]

    def __call__(self, photos: Sequence[Image.Image]) -> list[RegionFeatures]:
        """Return the regions of upright RGB photos: features, relative boxes, fc."""


EXTRACTORS: dict[str, str] = {
    "lite0": "sparsecap_jax.photos.extractors:Lite0",
    "torchvision": "sparsecap_jax.photos.torchvision_detector:FasterRCNN",
}
"""Extractors by name, as `MODULE:FUNCTION`, imported when they are asked for."""


def make_extractor(name: str, **options: Any) -> Extractor:
    """Make an extractor.

    Args:
        name: a key of `EXTRACTORS`, or `MODULE:FUNCTION` of one's own.
        **options: its options.

    Raises:
        ConfigError: no such extractor, an unknown option, or a package that it needs is missing.
    """
    target = EXTRACTORS.get(name, name)
    module, colon, function = target.partition(":")
    if not colon:
        known = ", ".join(sorted(EXTRACTORS))
        raise ConfigError(f"extractor is {name!r}; expected one of {known}, or MODULE:FUNCTION")
    try:
        factory: Callable[..., Extractor] = getattr(importlib.import_module(module), function)
        return factory(**options)
    except ImportError as error:
        raise ConfigError(f"extractor {name!r} cannot be imported: {error}") from error
    except AttributeError as error:
        raise ConfigError(f"extractor {name!r}: {module} has no {function}") from error
    except TypeError as error:
        raise ConfigError(f"extractor {name!r}: {error}") from error


def remake_extractor(settings: Mapping[str, Any]) -> Extractor:
    """Make the extractor that made a folder of features, from its `extractor.json`.

    Raises:
        ConfigError: no settings, or it cannot be made here.
    """
    if not isinstance(settings.get("extractor"), str):
        raise ConfigError(
            "nothing says how to make features of photos for this run; expected extractor.json, "
            "which training on extracted features keeps"
        )
    options = {k: v for k, v in settings.items() if k not in ("extractor", "half")}
    return make_extractor(settings["extractor"], **options)


@dataclasses.dataclass(frozen=True)
class Windows:
    """Where Lite0 looks.

    Attributes:
        size: photos are squeezed to `size x size`; the map has one cell for 32 x 32 pixels.
        grid: cells on each side of the grid; 0 for none.
        pyramid: windows on each side, for each level of the pyramid.
    """

    size: int = 320
    grid: int = 0
    pyramid: tuple[int, ...] = (1, 2, 3)

    def __post_init__(self):
        if self.size < STRIDE or self.size % STRIDE:
            raise ConfigError(f"size is {self.size}; expected a multiple of {STRIDE}")
        sides = (*self.pyramid, *([self.grid] if self.grid else []))
        if not sides or min(sides) < 1 or max(sides) > self.size // STRIDE:
            raise ConfigError(
                f"grid is {self.grid}, pyramid {self.pyramid}; expected at least one window, and "
                f"no side above the map's {self.size // STRIDE} cells"
            )


class Lite0:
    """Features of EfficientNet-Lite0's last map, averaged over windows; fc is the map's mean.

    Args:
        batch_size: photos of one call of the network; fewer are filled up, so that it is compiled
            once.
        **windows: fields of `Windows`.

    Raises:
        ConfigError: windows that do not fit, or the published weights are not installed.
    """

    feature_size = FEATURES

    def __init__(self, *, batch_size: int = 16, **windows: Any):
        if "pyramid" in windows:
            windows["pyramid"] = tuple(windows["pyramid"])
        self.windows = Windows(**windows)
        self.settings = {"extractor": "lite0", **dataclasses.asdict(self.windows)}
        self.settings["pyramid"] = list(self.windows.pyramid)
        self.boxes = window_boxes(self.windows.grid, self.windows.pyramid)
        side = self.windows.size // STRIDE
        self._pooling = pooling_weights(self.boxes, side, side)
        self._params = jax.device_put(load_params())
        self._batch_size = batch_size

    def __call__(self, photos: Sequence[Image.Image]) -> list[RegionFeatures]:
        """Return the windows' features `[R, 1280]`, boxes `[R, 4]` and fc `[1280]` of photos."""
        found = []
        for start in range(0, len(photos), self._batch_size):
            part = photos[start : start + self._batch_size]
            pixels = np.zeros((self._batch_size, *2 * [self.windows.size], 3), np.uint8)
            for row, photo in enumerate(part):
                pixels[row] = squeeze(photo, self.windows.size)
            regions, fc = jax.device_get(_windows(self._params, pixels, self._pooling))
            found += [RegionFeatures(regions[i], self.boxes, fc[i]) for i in range(len(part))]
        return found


@jax.jit
def _windows(params, pixels, pooling):
    """Pooled features `[B, R, D]` and means `[B, D]` of uint8 pixels `[B, S, S, 3]`."""
    scaled = (pixels.astype(jnp.float32) - 127.0) / 128.0
    maps = EfficientNetLite0().apply({"params": params}, scaled)
    cells = maps.reshape(len(maps), -1, FEATURES)
    return jnp.einsum("rn,bnd->brd", pooling, cells), cells.mean(axis=1)
