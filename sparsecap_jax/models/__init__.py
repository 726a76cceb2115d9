"""Captioning models behind one interface.

A model is a Linen module whose dataclass fields are its config. B images have K rows each
(captions, samples or beams); regions are `types.Regions`; V is the vocabulary's size. A model has
the fields `vocab_size` and `feature_size` and four methods, deterministic given their rngs, called
by `model.apply({"params": params}, ..., method=...)`:

    context = model.encode(regions, train=False)           # leaves [B, ...], once per image
    carry = model.init_carry(context, K)                   # leaves [B, K, ...]
    carry, log_probs = model.step(carry, tokens, context)  # int32 [B, K] -> float32 [B, K, V]
    log_probs = model(regions, tokens, train=False)        # int32 [B, K, T] -> float32 [B, K, T, V]

Log-probs are those of the token that follows; BOS is fed first. With `train=True`, a keyword of
`encode`, `step` and `__call__`, dropout draws from the rng stream "dropout". A field
`max_seq_length`, where there is one, bounds the number of tokens that `step` can be fed.

`needs_boxes`, `samples_inputs`, `prepare` and `decode_packed` are optional: `CaptionModel`
documents them and holds their defaults. Inherit from it or not; the four methods are enough to
train (self-critically, too), to evaluate and to caption. Register a model with
`MODELS.register(name, cls)`, or name it as `MODULE:NAME` in the config.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array, Key

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.models.interface import CaptionModel, packed_method, packs_words
from sparsecap_jax.models.relation_transformer import RelationTransformer
from sparsecap_jax.models.soft_attention import SoftAttention
from sparsecap_jax.models.transformer import Transformer
from sparsecap_jax.models.up_down import UpDown
from sparsecap_jax.settings import Registry, build, defaults_of
from sparsecap_jax.types import PyTree, Regions

__all__ = [
    "MODELS",
    "CaptionModel",
    "abstract_params",
    "count_params",
    "init_params",
    "make_model",
    "model_class",
    "model_fields",
    "packed_method",
    "packs_words",
]

MODELS: Registry[type[nn.Module]] = Registry(
    "model.name",
    {
        "relation_transformer": RelationTransformer,
        "soft_attention": SoftAttention,
        "transformer": Transformer,
        "up_down": UpDown,
    },
    nn.Module,
)


def model_class(name: str) -> type[nn.Module]:
    """Return the class of model `name`.

    Raises:
        ConfigError: there is no such model, or it is no Linen module.
    """
    entry = MODELS[name]
    if not (isinstance(entry, type) and issubclass(entry, nn.Module)):
        raise ConfigError(f"model.name is {name!r}; expected a subclass of flax.linen.Module")
    return entry


def model_fields(name: str) -> dict[str, Any]:
    """Return the config fields of model `name` with their defaults (`MISSING` if required).

    Raises:
        ConfigError: see `model_class`.
    """
    return defaults_of(model_class(name))


def make_model(config: Mapping[str, Any]) -> nn.Module:
    """Build the unbound module that `config` (`{"name": ..., field: value}`) describes.

    Raises:
        ConfigError: an unknown model or field, or a value of the wrong type or out of range.
    """
    fields = {key: value for key, value in config.items() if key != "name"}
    return build(model_class(config["name"]), fields, "model")


def _smallest_inputs(model: nn.Module) -> tuple[Regions, Array]:
    """Return regions and tokens of one image, enough to create every parameter."""
    zeros = jnp.zeros((1, 1, model.feature_size), jnp.float32)
    regions = Regions(zeros, jnp.ones((1, 1), bool), jnp.zeros((1, 1, 4), jnp.float32), zeros[0])
    return regions, jnp.zeros((1, 1, 2), jnp.int32)


def abstract_params(model: nn.Module) -> dict[str, Any]:
    """Return shapes and dtypes of a model's params without computing anything."""
    return jax.eval_shape(model.init, jax.random.key(0), *_smallest_inputs(model))["params"]


def init_params(model: nn.Module, rng: Key[Array, ""]) -> PyTree:
    """Draw a model's initial params, float32.

    The numbers are those of `jax.jit(model.init)`, which compiles the draws of all layers as one
    program; here layers of the same shape share one.

    Raises:
        ConfigError: a parameter depends on the regions or tokens.
    """
    inputs = jax.eval_shape(lambda: _smallest_inputs(model))
    draw = jax.make_jaxpr(lambda *args: model.init(*args)["params"], return_shape=True)
    traced, shapes = draw(rng, *inputs)
    # What remains without the model's outputs; its operations run one by one.
    jaxpr, (random, *used) = dce_jaxpr(traced.jaxpr, [True] * len(traced.out_avals))
    if any(used):
        raise ConfigError(
            f"model: initial parameters of {type(model).__name__} depend on regions or tokens; "
            "expected ones that depend on the rng alone"
        )
    leaves = jaxpr_as_fun(ClosedJaxpr(jaxpr, traced.consts))(*[rng] * random)
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def count_params(model: nn.Module) -> int:
    """Return the number of weights and biases of a model; shared layers count once."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(model)))
