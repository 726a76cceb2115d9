"""The model as a search sees it: one step, and the state that rows of beams or samples share."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from sparsecap_jax.decoding.constraints import Constraint
from sparsecap_jax.decoding.options import DecodeOptions
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class Stepper:
    """A model with its parameters and the encoded images, ready to be stepped.

    Attributes:
        model: an unbound Flax module with `encode`, `init_carry` and `step`.
        params: its parameters, masks applied.
        context: result of `encode`, leaves `[B, ...]`.
        dropout_rng: with it the model steps in train mode, step t with `fold_in(dropout_rng, t)`.
    """

    model: Any
    params: PyTree
    context: PyTree
    dropout_rng: Key[Array, ""] | None = None

    def __call__(
        self, carry: PyTree, tokens: Int[Array, "B K"], position: Int[Array, ""]
    ) -> tuple[PyTree, Float[Array, "B K V"]]:
        """Feed `tokens`, `position` after BOS; return the new carry and the next log-probs."""
        mode = {}
        if self.dropout_rng is not None:
            mode["train"] = True
            mode["rngs"] = {"dropout": jax.random.fold_in(self.dropout_rng, position)}
        variables = {"params": self.params}
        return self.model.apply(variables, carry, tokens, self.context, method="step", **mode)


@dataclasses.dataclass(frozen=True)
class Search:
    """One search for the captions of a batch, standing after BOS.

    Attributes:
        stepper: the model.
        carry: its state, leaves `[B, 1, ...]`.
        log_probs: `[B, 1, V]`, of the first token.
        constrain: applied to the log-probs of every step.
        options: method and sizes.
        factors: `[T]`, of the length penalty, see `penalty_factors`. Other penalties need no new
            compilation.
        keys: `[B]`, random keys of the images, for sampling.
    """

    stepper: Stepper
    carry: PyTree
    log_probs: Float[Array, "B 1 V"]
    constrain: Constraint
    options: DecodeOptions
    factors: Float[Array, " T"]
    keys: Key[Array, " B"] | None = None


def begin(stepper: Stepper, options: DecodeOptions) -> tuple[PyTree, Float[Array, "B 1 V"]]:
    """Feed BOS, in one row per image; return the carry and the log-probs of the first token.

    Raises:
        ConfigError: captions may get longer than the model's cache.
    """
    room = getattr(stepper.model, "max_seq_length", options.max_length)
    if options.max_length > room:
        raise ConfigError(
            f"decoding option max_length: found {options.max_length}, expected at most the model's "
            f"max_seq_length {room}"
        )
    variables = {"params": stepper.params}
    carry = stepper.model.apply(variables, stepper.context, 1, method="init_carry")
    bos = jnp.full((batch_size(stepper.context), 1), options.bos_id, jnp.int32)
    return stepper(carry, bos, jnp.int32(0))


def batch_size(context: PyTree) -> int:
    """Return the number of images B of an encoded batch."""
    return jax.tree.leaves(context)[0].shape[0]


def spread(carry: PyTree, rows: int) -> PyTree:
    """Copy the one row of every leaf `[B, 1, ...]` to `rows` rows."""
    return jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (leaf.shape[0], rows, *leaf.shape[2:])), carry
    )


def reorder(carry: PyTree, parents: Int[Array, "B K"]) -> PyTree:
    """Give row k of every leaf `[B, J, ...]` the content of row `parents[:, k]`."""
    batch = parents.shape[0]

    def gather(leaf):
        # Gathering whole rows of a matrix is a copy per row, faster than any take along axis 1.
        rows = leaf.shape[1]
        flat = (parents + rows * jnp.arange(batch, dtype=jnp.int32)[:, None]).reshape(-1)
        taken = jnp.take(leaf.reshape(batch * rows, -1), flat, axis=0, mode="clip")
        return taken.reshape(batch, parents.shape[1], *leaf.shape[2:])

    return jax.tree.map(gather, carry)


def log_prob_of(log_probs: Float[Array, "B K V"], tokens: Int[Array, "B K"]) -> Float[Array, "B K"]:
    """Look up the log-prob of `tokens`."""
    return jnp.take_along_axis(log_probs, tokens[..., None], axis=2)[..., 0]


def caption_lengths(tokens: Int[Array, "*N T"], eos_id: int) -> Int[Array, "*N"]:
    """Number of tokens up to the first EOS, itself included; T where there is none."""
    is_eos = tokens == eos_id
    length = tokens.shape[-1]
    first = jnp.argmax(is_eos, axis=-1) + 1
    return jnp.where(jnp.any(is_eos, axis=-1), first, length).astype(jnp.int32)
