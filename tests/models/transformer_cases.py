"""What the tests of the transformers share: golden files, masked parameters, one pass each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import reference_cases as cases

from sparsecap_jax.models import abstract_params, make_model
from sparsecap_jax.types import Regions

TRANSFORMERS = (
    "transformer",
    "transformer_share_att_kv",
    "transformer_share_att_qk",
    "transformer_share_layer",
    "transformer_acort_mixed",
)
RELATION_TRANSFORMERS = (
    "relation_transformer",
    "relation_transformer_no_trig",
    "relation_transformer_acort_kv",
    "relation_transformer_acort_qk",
    "relation_transformer_prune_supermask",
    "relation_transformer_prune_mag_uniform",
)
ALL = TRANSFORMERS + RELATION_TRANSFORMERS
# The reference's incremental decoding is right without layer sharing and without masks.
CACHE_IS_RIGHT = tuple(
    name for name in ALL if not any(s in name for s in ("acort", "share_layer", "prune"))
)


def is_trigonometric(name):
    return "relation" in name and "no_trig" not in name


def atol(name):
    """Tolerance of log-probs, see the README of the figures."""
    return 3e-3 if is_trigonometric(name) else 1e-4


def gradient_atol(name):
    return 2e-3 if is_trigonometric(name) else 2e-5


def straight_through(logits, binary):
    """`binary` forward, the sigmoid's derivative backward."""
    probs = jax.nn.sigmoid(logits)
    return binary + probs - jax.lax.stop_gradient(probs)


def masked(params, masks):
    """Multiply each masked weight by its mask, the slow obvious way."""
    if not isinstance(masks, dict):
        return params * masks
    return {k: masked(v, masks[k]) if k in masks else v for k, v in params.items()}


def effective(case, variables):
    """Params times the reference's evaluation masks: rounded probabilities, or as they are."""
    masks = variables["masks"]
    if cases.config_of(case)["prune_type"] == "supermask":
        masks = jax.tree.map(lambda m: straight_through(m, jnp.round(jax.nn.sigmoid(m))), masks)
    return masked(variables["params"], masks)


def inputs(case):
    """Tokens `[B, K, T]` of the reference's inputs: it drops the last."""
    return cases.captions(case)[0][..., :-1]


def caption_loss(log_probs, case):
    """-sum(log p of the next token) / number of tokens, over all captions."""
    tokens, mask = cases.captions(case)
    picked = jnp.take_along_axis(log_probs, tokens[:, :, 1:, None], axis=-1)[..., 0]
    weights = jnp.asarray(mask[:, :, 1:], jnp.float32)
    return -jnp.sum(picked * weights) / jnp.sum(weights)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("method", "mutable", "train"))
def apply(model, params, *args, **kwargs):
    """`model.apply`, compiled."""
    return model.apply({"params": params}, *args, **kwargs)


def stepper(model, params):
    """Compiled `encode` and `step` of a model."""
    parts = (functools.partial(apply, method=method) for method in ("encode", "step"))
    return tuple(functools.partial(part, model, params) for part in parts)


def run_steps(model, params, regions, tokens):
    """Log-probs `[B, K, T, V]` one token at a time."""
    encode, step = stepper(model, params)
    context = encode(regions)
    carry = model.apply({}, context, tokens.shape[1], method="init_carry")
    out = []
    for t in range(tokens.shape[2]):
        carry, log_probs = step(carry, jnp.asarray(tokens[:, :, t]), context)
        out.append(log_probs)
    return np.stack(out, axis=2)


def small_model(name="transformer", **fields):
    """A model of four heads and two layers, with random inputs: 2 images, 3 rows, 5 regions."""
    sizes = {"feature_size": 6, "d_model": 16, "ff_size": 24, "num_layers": 2, "num_heads": 4}
    model = make_model({"name": name, "vocab_size": 11, "max_seq_length": 7, **sizes, **fields})
    rng = np.random.default_rng(0)
    corners = rng.random((2, 5, 2), np.float32) / 2
    extents = rng.random((2, 5, 2), np.float32) / 2
    regions = Regions(
        rng.standard_normal((2, 5, 6), np.float32),
        np.arange(5) < np.array([[5], [3]]),
        np.concatenate([corners, corners + extents], axis=-1),
        np.zeros((2, 6), np.float32),
    )
    tokens = rng.integers(1, 11, (2, 3, 7)).astype(np.int32)
    # Drawn here, as compiling `init` takes seconds.
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0.0, 0.4, leaf.shape).astype(np.float32)),
        abstract_params(model),
    )
    return model, params, regions, tokens
