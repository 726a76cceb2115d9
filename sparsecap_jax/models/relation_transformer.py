"""Object Relation Transformer: the transformer captioner with box geometry in its encoder.

Herdade et al., "Image Captioning: Transforming Objects into Words", NeurIPS 2019, after Hu et al.,
"Relation Networks for Object Detection", CVPR 2018; in the form of the reference
(`models/relation_transformer.py`). With shared projections and layers it is ACORT (Tan et al.,
"ACORT: A Compact Object Relation Transformer for Parameter Efficient Image Captioning", 2022).
"""

from typing import ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from sparsecap_jax.models.layers import FanInInit, Linear
from sparsecap_jax.models.precision import matmul
from sparsecap_jax.models.transformer import Transformer
from sparsecap_jax.models.transformer_layers import EncoderLayer
from sparsecap_jax.types import ArrayLike, Regions

WAVE_LENGTH = 1000.0  # ratio of the longest to the shortest wave of the trigonometric embedding
MIN_OFFSET = 1e-3  # least relative offset of two centres, so that its log is finite
MIN_WEIGHT = 1e-6  # least geometry weight, so that its log is finite


def box_geometry(boxes: Float[Array, "B R 4"]) -> Float[Array, "B R R 4"]:
    """Return the geometry of all pairs of boxes: log offsets of centres, log ratios of sizes.

    Entry (i, j) is log|dx / w_i|, log|dy / h_i|, log(w_i / w_j), log(h_i / h_j), offsets clamped
    below at 0.001. Coordinates are divided by the image's size, yet widths and heights get +1 as
    if they were pixels: the reference does so, and its published weights are trained on it.
    """
    x_min, y_min, x_max, y_max = jnp.split(boxes, 4, axis=-1)  # [B, R, 1] each
    logs = []
    for low, high in ((x_min, x_max), (y_min, y_max)):
        centre, size = (low + high) * jnp.float32(0.5), (high - low) + jnp.float32(1.0)
        offset = jnp.abs((centre - centre.swapaxes(1, 2)) / size)
        log_offset = jnp.log(jnp.maximum(offset, jnp.float32(MIN_OFFSET)))
        logs.append((log_offset, jnp.log(size / size.swapaxes(1, 2))))
    (dx, dw), (dy, dh) = logs
    return jnp.stack([dx, dy, dw, dh], axis=-1)


def trigonometric(geometry: Float[Array, "B R R 4"], size: int = 64) -> Float[Array, "B R R G"]:
    """Embed geometry in sines and cosines of `size / 8` wave lengths each.

    Arguments reach several hundred, so float32 leaves errors of up to 1e-3, as in the reference.
    """
    waves = size // 8
    rates = (WAVE_LENGTH ** (-np.arange(waves) / waves)).astype(np.float32)
    angles = (jnp.float32(100.0) * geometry)[..., None] * rates
    angles = angles.reshape(*geometry.shape[:-1], -1)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class HeadWeights(nn.Module):
    """Weights `[G, 1]` and bias `[1]` of one head's affine map of the geometry."""

    bias_init: FanInInit

    @nn.compact
    def __call__(self, size: int) -> tuple[ArrayLike, ArrayLike]:
        """Return kernel and bias for geometry of width `size`."""
        kernel = self.param("kernel", nn.initializers.xavier_uniform(), (size, 1))
        return kernel, self.param("bias", self.bias_init(size), (1,))


class GeometryBias(nn.Module):
    """Log of each head's geometry weight, ReLU'd and clamped: a term of the scores.

    Attributes:
        num_heads: number of heads H.
        bias_init: see `Linear`.
        dtype: type of the operands of the product.
    """

    num_heads: int
    bias_init: FanInInit
    dtype: str

    def setup(self):
        self.head = [HeadWeights(self.bias_init) for _ in range(self.num_heads)]

    def __call__(self, geometry: Float[Array, "B R R G"]) -> Float[Array, "B H R R"]:
        """Return the term of the scores; one product serves all heads."""
        kernels, biases = zip(*(head(geometry.shape[-1]) for head in self.head), strict=True)
        weights = matmul(geometry, jnp.concatenate(kernels, axis=-1), self.dtype)
        weights = weights + jnp.concatenate(biases)
        # The clamp contains the ReLU.
        return jnp.moveaxis(jnp.log(jnp.maximum(weights, jnp.float32(MIN_WEIGHT))), -1, 1)


class RelationEncoderLayer(EncoderLayer):
    """Encoder layer whose attention weighs regions by the relation of their boxes, too."""

    def setup(self):
        super().setup()
        config = self.config
        self.geometry = GeometryBias(config.num_heads, config.bias_inits["geometry"], config.dtype)

    def score_bias(self, geometry: Float[Array, "B R R G"]) -> Float[Array, "B H R R"]:
        """Return the log geometry weights of this layer."""
        return self.geometry(geometry)


class RelationTransformer(Transformer):
    """The Object Relation Transformer, and ACORT when attention or layers are shared.

    Attributes:
        box_embedding: "trig" for the 64-d trigonometric embedding of geometry, "plain" for its
            four numbers as they are.
        others: see `Transformer`.
    """

    box_embedding: Literal["trig", "plain"] = "trig"

    encoder_layer = RelationEncoderLayer
    needs_boxes: ClassVar[bool] = True

    def _relate(
        self, x: Float[Array, "N D"], regions: Regions
    ) -> tuple[Float[Array, "N D"], Float[Array, "B R R G"]]:
        """Return `x`, 0 where padded, and the embedded geometry `[B, R, R, G]`."""
        geometry = box_geometry(jnp.asarray(regions.boxes))
        embedded = trigonometric(geometry) if self.box_embedding == "trig" else geometry
        return x * jnp.asarray(regions.mask).reshape(-1, 1), embedded

    def _src_embed(self) -> Linear:
        """Make a layer that starts as in PyTorch, for the reference leaves it so."""
        return Linear(self.d_model, self.compute_dtype)

    def _bias_inits(self) -> dict[str, FanInInit]:
        """Let both attentions of the decoder start from one copy."""
        inits = super()._bias_inits()
        return {**inits, "decoder_cross": inits["decoder_self"]}
