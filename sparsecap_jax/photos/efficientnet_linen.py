"""EfficientNet-Lite in Linen, for many photos; see `efficientnet_lite`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from sparsecap_jax.photos.efficientnet_lite import FEATURES, block_shapes, scaled


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

    def setup(self) -> None:
        """Name the layers."""
        self.stem = nn.Conv(32, (3, 3), 2)
        self.blocks = [Block(*shape) for shape in block_shapes(self.network)]
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


def compiled_windows(
    network: str, params: Any, pooling: Float[np.ndarray, "R N"]
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return the compiled function from uint8 pixels `[B, S, S, 3]` to features of windows.

    These are features `[B, R, D]`, pooled by the weights over the N cells of the map, and their
    means over the map `[B, D]`.
    """
    params = jax.device_put(params)

    @jax.jit
    def windows(params, pixels):
        pixels = scaled(pixels.astype(jnp.float32))
        maps = EfficientNetLite(network).apply({"params": params}, pixels)
        cells = maps.reshape(len(maps), -1, FEATURES)
        return jnp.einsum("rn,bnd->brd", pooling, cells), cells.mean(axis=1)

    return lambda pixels: jax.device_get(windows(params, pixels))
