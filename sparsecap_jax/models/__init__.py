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

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.models.relation_transformer import RelationTransformer
from sparsecap_jax.models.soft_attention import SoftAttention
from sparsecap_jax.models.transformer import Transformer
from sparsecap_jax.models.up_down import UpDown
from sparsecap_jax.types import Regions

MODELS: dict[str, type[nn.Module]] = {
    "relation_transformer": RelationTransformer,
    "soft_attention": SoftAttention,
    "transformer": Transformer,
    "up_down": UpDown,
}


def model_fields(name: str) -> dict[str, Any]:
    """Return the config fields of model `name` with their defaults (`MISSING` if required).

    Raises:
        ConfigError: there is no such model.
    """
    if name not in MODELS:
        raise ConfigError(f"model.name: {_unknown(name, MODELS)}")
    return {f.name: f.default for f in dataclasses.fields(MODELS[name]) if f.name not in _LINEN}


def make_model(config: Mapping[str, Any]) -> nn.Module:
    """Build the unbound module that `config` (`{"name": ..., field: value}`) describes.

    Raises:
        ConfigError: unknown model or field; the message names the nearest valid one.
    """
    fields = {key: value for key, value in config.items() if key != "name"}
    known = model_fields(config["name"])
    for key in fields:
        if key not in known:
            raise ConfigError(f"model.{key}: {_unknown(key, known)}")
    for key, default in known.items():
        if default is dataclasses.MISSING and key not in fields:
            raise ConfigError(f"model.{key}: a value is required by model {config['name']!r}")
    frozen = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return MODELS[config["name"]](**frozen)


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


_LINEN = ("parent", "name")


def _unknown(name: str, known) -> str:
    near = difflib.get_close_matches(str(name), list(known), 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown name {name!r}{hint} (known: {', '.join(sorted(known))})"
