"""Object Relation Transformer: the transformer captioner with box geometry in its encoder.

Herdade et al., "Image Captioning: Transforming Objects into Words", NeurIPS 2019, after Hu et al.,
"Relation Networks for Object Detection", CVPR 2018; in the form of the reference
(`models/relation_transformer.py`). With shared projections and layers it is ACORT (Tan et al.,
"ACORT: A Compact Object Relation Transformer for Parameter Efficient Image Captioning", 2022).
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from sparsecap_jax.formulas import MIN_WEIGHT, box_geometry, trigonometric
from sparsecap_jax.model_fields import RelationTransformerFields
from sparsecap_jax.models.layers import FanInInit, Linear
from sparsecap_jax.models.precision import matmul
from sparsecap_jax.models.transformer import Transformer
from sparsecap_jax.models.transformer_layers import EncoderLayer
from sparsecap_jax.types import ArrayLike, Regions


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

    def setup(self) -> None:
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

    def setup(self) -> None:
        super().setup()
        config = self.config
        self.geometry = GeometryBias(config.num_heads, config.bias_inits["geometry"], config.dtype)

    def score_bias(self, geometry: Float[Array, "B R R G"] | None) -> Float[Array, "B H R R"]:
        """Return the log geometry weights of this layer."""
        assert geometry is not None
        return self.geometry(geometry)


class RelationTransformer(RelationTransformerFields, Transformer):
    """The Object Relation Transformer, and ACORT when attention or layers are shared."""

    encoder_layer = RelationEncoderLayer

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
