"""Several models, of whatever architectures, as one."""

import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.types import PyTree, Regions


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

    def encode(self, regions: Regions, *, train: bool = False) -> dict[str, PyTree]:
        """Encode the images by every member."""
        return {
            str(i): member.encode(regions, train=train) for i, member in enumerate(self.members)
        }

    def init_carry(self, context: dict[str, PyTree], rows: int) -> dict[str, PyTree]:
        """Start every member."""
        return {
            str(i): member.init_carry(context[str(i)], rows)
            for i, member in enumerate(self.members)
        }

    def step(
        self, carry: dict[str, PyTree], tokens: Int[Array, "B K"], context: dict[str, PyTree]
    ) -> tuple[dict[str, PyTree], Float[Array, "B K V"]]:
        """Step every member; return the log of the mean of their probabilities."""
        new, members = {}, []
        for i, member in enumerate(self.members):
            new[str(i)], log_probs = member.step(carry[str(i)], tokens, context[str(i)])
            members.append(log_probs)
        mean = jax.nn.logsumexp(jnp.stack(members), axis=0) - jnp.log(jnp.float32(len(members)))
        # Beam search relies on log-probs that are at most 0; rounding might exceed it.
        return new, jnp.minimum(mean, 0.0)


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
