"""Captioning models behind one interface.

A model is a Linen module whose dataclass fields are its config. With B images and K rows per image
(captions, samples or beams), every model offers, through `model.apply({"params": params}, ...,
method=...)`:

    context = model.encode(regions, train=False)        # leaves [B, ...], once per image
    carry = model.init_carry(context, K)                 # leaves [B, K, ...]
    carry, log_probs = model.step(carry, tokens, context)  # [B, K] -> [B, K, V]
    log_probs = model(regions, tokens, train=False)      # [B, K, T] -> [B, K, T, V]

To add one: a file with the module, and a line in `MODELS`.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from sparsecap_jax.models.relation_transformer import RelationTransformer
from sparsecap_jax.models.soft_attention import SoftAttention
from sparsecap_jax.models.transformer import Transformer
from sparsecap_jax.models.up_down import UpDown
from sparsecap_jax.settings import Registry, build, defaults_of
from sparsecap_jax.types import Regions

MODELS: Registry[type[nn.Module]] = Registry(
    "model.name",
    {
        "relation_transformer": RelationTransformer,
        "soft_attention": SoftAttention,
        "transformer": Transformer,
        "up_down": UpDown,
    },
)


def model_fields(name: str) -> dict[str, Any]:
    """Return the config fields of model `name` with their defaults (`MISSING` if required).

    Raises:
        ConfigError: there is no such model.
    """
    return defaults_of(MODELS[name])


def make_model(config: Mapping[str, Any]) -> nn.Module:
    """Build the unbound module that `config` (`{"name": ..., field: value}`) describes.

    Raises:
        ConfigError: an unknown model or field, or a value of the wrong type or out of range.
    """
    fields = {key: value for key, value in config.items() if key != "name"}
    return build(MODELS[config["name"]], fields, "model")


def smallest_inputs(model: nn.Module) -> tuple[Regions, Array]:
    """Regions and tokens of one image, region and caption: enough to create every parameter."""
    zeros = jnp.zeros((1, 1, model.feature_size), jnp.float32)
    regions = Regions(zeros, jnp.ones((1, 1), bool), jnp.zeros((1, 1, 4), jnp.float32), zeros[0])
    return regions, jnp.zeros((1, 1, 2), jnp.int32)


def abstract_params(model: nn.Module) -> dict[str, Any]:
    """Shapes and dtypes of `model`'s params, without computing anything."""
    return jax.eval_shape(model.init, jax.random.key(0), *smallest_inputs(model))["params"]


def count_params(model: nn.Module) -> int:
    """Number of weights and biases of `model`; shared layers count once."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(model)))
