"""Several models, of whatever architectures, as one."""

import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.types import PyTree, Regions

PerMember = tuple[PyTree, ...]


class Ensemble(nn.Module):
    """The mean of the members' probabilities, behind the interface of a model.

    Attributes:
        members: unbound modules over the same vocabulary.
    """

    members: tuple[nn.Module, ...]

    @property
    def vocab_size(self) -> int:
        """Number of tokens V that all members share."""
        return self.members[0].vocab_size

    @property
    def max_seq_length(self) -> int:
        """Number of tokens that every member has room for; recurrent ones have no bound."""
        return min(getattr(member, "max_seq_length", sys.maxsize) for member in self.members)

    def encode(self, regions: Regions, *, train: bool = False) -> PerMember:
        """Encode the images by every member."""
        return tuple(member.encode(regions, train=train) for member in self.members)

    def prepare(self) -> None:
        """Prepare every member."""
        for member in self.members:
            if hasattr(member, "prepare"):
                member.prepare()

    def init_carry(self, context: PerMember, rows: int) -> PerMember:
        """Start every member."""
        pairs = zip(self.members, context, strict=True)
        return tuple(member.init_carry(encoded, rows) for member, encoded in pairs)

    def step(
        self, carry: PerMember, tokens: Int[Array, "B K"], context: PerMember
    ) -> tuple[PerMember, Float[Array, "B K V"]]:
        """Step every member; return the log of the mean of their probabilities."""
        members = zip(self.members, carry, context, strict=True)
        steps = [member.step(state, tokens, encoded) for member, state, encoded in members]
        carry, log_probs = zip(*steps, strict=True)
        mean = jax.nn.logsumexp(jnp.stack(log_probs), axis=0) - jnp.log(jnp.float32(len(steps)))
        # Beam search relies on log-probs that are at most 0; rounding might exceed it.
        return carry, jnp.minimum(mean, 0.0)


def make_ensemble(
    members: Sequence[tuple[nn.Module, PyTree]],
) -> tuple[Ensemble, dict[str, PyTree]]:
    """Join models and their params to one model and its params, for `decode`.

    Args:
        members: pairs of an unbound module and its params, masks applied.

    Returns:
        The ensemble and its params.

    Raises:
        ConfigError: no members, or vocabularies of different sizes.
    """
    sizes = sorted({module.vocab_size for module, _ in members})
    if len(sizes) != 1:
        raise ConfigError(f"ensemble: vocab_size: found {sizes}, expected one size for all members")
    params = {f"members_{i}": params for i, (_, params) in enumerate(members)}
    return Ensemble(tuple(module for module, _ in members)), params
