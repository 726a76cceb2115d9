"""The entries: encode, search, return captions, compiled once per model, options and shape."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from sparsecap_jax.decoding.lexical import Automaton
from sparsecap_jax.decoding.methods import check_images, find_captions
from sparsecap_jax.decoding.options import DecodeOptions
from sparsecap_jax.decoding.stepper import Decoded, penalty_factors
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.types import ArrayLike, PyTree, Regions


def prepare(model: Any, params: PyTree) -> dict[str, PyTree]:
    """Return what decoding makes of the weights alone, for the argument `prepared` of `decode`.

    Up-Down and Soft-Attention split a kernel, which otherwise costs a copy of it for each batch.
    The result is of these params alone, and stays beside them in memory: a copy of that kernel, and
    the other arrays themselves where they are on the device.
    """
    if not hasattr(model, "prepare"):
        return {}
    # Compiled, it would copy the arrays that it returns as they are.
    variables = {"params": jax.tree.map(jnp.asarray, params)}
    return model.apply(variables, method="prepare", mutable=["prepared"])[1]


def decode(
    model: Any,
    params: PyTree,
    regions: Regions,
    options: DecodeOptions,
    rng: Array | None = None,
    *,
    prefix: Int[ArrayLike, "B P"] | None = None,
    required: Automaton | None = None,
    prepared: Mapping[str, PyTree] | None = None,
) -> Decoded:
    """Caption the images of a batch.

    Everything runs in one compiled call, which is cached: batches of the same shapes never compile
    again. Row b of the result depends on image b alone, whatever the rest of the batch or its
    padding.

    Args:
        model: an unbound Flax module with `encode`, `init_carry` and `step`.
        params: its parameters, masks applied.
        regions: features `[B, R, D]` and so on.
        options: the search.
        rng: for sampling: one key, from which image b takes `fold_in(rng, b)`, or a key per image
            `[B]`, which makes the captions of an image independent of its place in the batch.
        prefix: int `[B, P]`, tokens that captions start with, without BOS; `pad_id` leaves a place
            free.
        required: words that captions contain, from `must_contain`. A beam search without groups
            becomes a constrained beam search, which runs S times as many rows.
        prepared: result of `prepare` for the same model and params.

    Returns:
        `Decoded`, K captions per image.

    Raises:
        ConfigError: no key given for sampling, more beams than the vocabulary has tokens, captions
            longer than the model has room for, or arguments for another number of images.
    """
    arguments = _arguments(regions.features.shape[0], options, rng, prefix, required)
    return _decode(model, {"params": params, **(prepared or {})}, regions, *arguments)


def decode_encoded(
    model: Any,
    params: PyTree,
    context: PyTree,
    options: DecodeOptions,
    rng: Array | None = None,
    *,
    prefix: Int[ArrayLike, "B P"] | None = None,
    required: Automaton | None = None,
    dropout_rng: Key[Array, ""] | None = None,
) -> Decoded:
    """Caption images that are encoded already: several searches, or a training step, share them.

    Meant for use inside a jitted function; no gradient flows through the search. As `decode`, with
    `context`, the result of `model.encode` in train mode or not, in the place of `regions`. Given
    `dropout_rng`, the model steps in train mode; the step that is fed token t (BOS is token 0, fed
    in one row per image) drops out with `fold_in(dropout_rng, t)`.
    """
    batch = jax.tree.leaves(context)[0].shape[0]
    arguments = _arguments(batch, options, rng, prefix, required)
    variables, context = jax.lax.stop_gradient(({"params": params}, context))
    return find_captions(model, variables, context, *arguments, dropout_rng=dropout_rng)


def _arguments(
    batch: int,
    options: DecodeOptions,
    rng: Array | None,
    prefix: ArrayLike | None,
    required: Automaton | None,
) -> tuple[DecodeOptions, Array, Array | None, Array | None, Automaton | None]:
    """Check the arguments of both entries; return the static and the traced ones."""
    check_images(batch, prefix, required)
    keys = None
    if options.method in ("sample", "gumbel"):
        keys = _image_keys(rng, batch, options.method)
    prefix = None if prefix is None else jnp.asarray(prefix, jnp.int32)
    factors = penalty_factors(options.length_penalty, options.max_length)
    # Other length penalties need no new compilation.
    static = dataclasses.replace(options, length_penalty="")
    return static, jnp.asarray(factors), keys, prefix, required


def _image_keys(rng: Array | None, batch: int, method: str) -> Key[Array, " B"]:
    """One key per image, from one for all or as given."""
    if rng is None or not jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
        kind = "none" if rng is None else f"dtype {rng.dtype}"
        raise ConfigError(f"decode: rng: found {kind}, expected a key of jax.random.key: {method}")
    if rng.ndim == 0:
        return jax.vmap(partial(jax.random.fold_in, rng))(jnp.arange(batch, dtype=jnp.int32))
    if rng.shape != (batch,):
        raise ConfigError(f"decode: rng: found shape {rng.shape}, expected {(batch,)} or one key")
    return rng


@partial(jax.jit, static_argnames=("model", "options"))
def _decode(
    model: Any,
    variables: PyTree,
    regions: Regions,
    options: DecodeOptions,
    factors: ArrayLike,
    keys: PyTree,
    prefix: PyTree,
    required: PyTree,
) -> Decoded:
    context = model.apply(variables, regions, train=False, method="encode")
    return find_captions(model, variables, context, options, factors, keys, prefix, required)
