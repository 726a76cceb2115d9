"""A search: the model as it sees it, its captions, and rows of beams or samples."""

import dataclasses
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from sparsecap_jax.array_modules import array_module
from sparsecap_jax.decoding.constraints import Constraint
from sparsecap_jax.decoding.options import DecodeOptions, parsed_penalty
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.types import ArrayLike, PyTree


class Decoded(NamedTuple):
    """Captions of a batch. A caption ends at its first EOS, not at its first PAD.

    Where constraints leave fewer than K captions, the missing ones have length 0 and score -inf.

    Attributes:
        tokens: int32 `[B, K, T]`, without BOS, with EOS where one was produced, PAD after the end.
            Beams come best first (within each group of a diverse search).
        log_probs: float32 `[B, K, T]`, natural log-prob of each token, 0 after the end.
        scores: float32 `[B, K]`, the rank of beams: the sum of log-probs (less the diversity
            penalties), times the factor of the length penalty; without penalties the plain sum.
        lengths: int32 `[B, K]`, number of tokens, EOS included.
    """

    tokens: Int[ArrayLike, "B K T"]
    log_probs: Float[ArrayLike, "B K T"]
    scores: Float[ArrayLike, "B K"]
    lengths: Int[ArrayLike, "B K"]


@dataclasses.dataclass(frozen=True)
class Search:
    """One search for the captions of a batch of encoded images.

    Attributes:
        model: an unbound Flax module with `encode`, `init_carry` and `step`, or a model of NumPy,
            see `sparsecap_jax.sparse`, which holds its weights itself.
        variables: the module's, `{"params": ...}` with masks applied, and what `prepare` returns.
        context: result of `encode`, leaves `[B, ...]`.
        options: method and sizes.
        constrain: applied to the log-probs of every step.
        factors: `[T]`, of the length penalty, see `penalty_factors`. Other penalties need no new
            compilation.
        keys: `[B]`, random keys of the images, for sampling.
        dropout_rng: with it the model steps in train mode, step t with `fold_in(dropout_rng, t)`.
    """

    model: Any
    variables: PyTree
    context: PyTree
    options: DecodeOptions
    constrain: Constraint
    factors: Float[ArrayLike, " T"]
    keys: PyTree = None
    dropout_rng: PyTree = None

    @property
    def xp(self) -> ModuleType:
        """The array module that the search runs on."""
        return array_module(self.factors)

    def begin(self) -> tuple[PyTree, Float[ArrayLike, "B 1 V"]]:
        """Feed BOS, in one row per image; return the carry and the log-probs of the first token.

        Raises:
            ConfigError: captions may get longer than the model's cache, or more beams are kept
                than there are tokens.
        """
        options = self.options
        room = getattr(self.model, "max_seq_length", options.max_length)
        if options.max_length > room:
            raise ConfigError(
                f"decoding option max_length: found {options.max_length}, expected at most the "
                f"model's max_seq_length {room}"
            )
        carry = self._call("init_carry", self.context, 1)
        batch = self.xp.tree_leaves(self.context)[0].shape[0]
        bos = self.xp.full((batch, 1), options.bos_id, np.int32)
        carry, log_probs = self.step(carry, bos, self.xp.int32(0))
        size, vocab = options.beam_size // options.num_groups, log_probs.shape[-1]
        if options.method == "beam" and size > vocab:
            # The first step has no more tokens; the reference refuses, too.
            raise ConfigError(
                f"decoding option beam_size: found {size} beams (per group), expected at most the "
                f"vocabulary's {vocab}"
            )
        return carry, log_probs

    def step(
        self, carry: PyTree, tokens: Int[ArrayLike, "B K"], position: Int[ArrayLike, ""]
    ) -> tuple[PyTree, Float[ArrayLike, "B K V"]]:
        """Feed `tokens`, `position` after BOS; return the new carry and the next log-probs."""
        mode = {}
        if self.dropout_rng is not None:
            (rng,) = self.xp.fold_in(self.dropout_rng[None], position)
            mode = {"train": True, "rngs": {"dropout": rng}}
        return self._call("step", carry, tokens, self.context, **mode)

    def _call(self, method: str, *args: Any, **mode: Any) -> Any:
        if self.variables is None:
            return getattr(self.model, method)(*args)
        return self.model.apply(self.variables, *args, method=method, **mode)


def penalty_factors(penalty: str, max_length: int) -> Float[np.ndarray, " T"]:
    """Return the factors of the length penalty, by which sums of log-probs are multiplied.

    "wu_ALPHA" divides by `((5 + length) / 6) ** ALPHA` (Wu et al., "Google's Neural Machine
    Translation System", 2016), "avg_ALPHA" by the length, whatever ALPHA, and "" by 1, as in the
    reference (`utils/model_utils.py`). The result is float32 `[T]`, for 1 to `max_length` tokens.
    Another penalty is a ConfigError.
    """
    parsed = parsed_penalty(penalty)
    if parsed is None:
        raise ConfigError(f"length_penalty is {penalty!r}; expected '', 'wu_ALPHA' or 'avg_ALPHA'")
    kind, alpha = parsed
    lengths = np.arange(1, max_length + 1, dtype=np.float64)
    divisors = lengths if kind == "avg" else ((5 + lengths) / 6) ** alpha
    return (1 / divisors).astype(np.float32)


def spread(xp: ModuleType, carry: PyTree, rows: int) -> PyTree:
    """Copy the one row of every leaf `[B, 1, ...]` to `rows` rows."""
    return xp.tree_map(
        lambda leaf: xp.broadcast_to(leaf, (leaf.shape[0], rows, *leaf.shape[2:])), carry
    )


def reorder(carry: PyTree, parents: Int[ArrayLike, "B K"]) -> PyTree:
    """Give row k of every leaf `[B, J, ...]` the content of row `parents[:, k]`."""
    batch, xp = parents.shape[0], array_module(parents)

    def gather(leaf):
        # Gathering whole rows of a matrix is a copy per row, faster than any take along axis 1.
        rows = leaf.shape[1]
        flat = (parents + rows * xp.arange(batch, dtype=np.int32)[:, None]).reshape(-1)
        taken = xp.take(leaf.reshape(batch * rows, -1), flat, axis=0, mode="clip")
        return taken.reshape(batch, parents.shape[1], *leaf.shape[2:])

    return xp.tree_map(gather, carry)
