"""Searches for captions, for every model through `encode`, `init_carry` and `step` alone.

`decode` is the entry; `DecodeOptions` says what to search for, `Decoded` holds what was found.
"""

from sparsecap_jax.decoding.attention import attention_weights
from sparsecap_jax.decoding.constraints import Constraint, Prefix
from sparsecap_jax.decoding.decode import decode, decode_encoded
from sparsecap_jax.decoding.ensemble import Ensemble, make_ensemble
from sparsecap_jax.decoding.lexical import Automaton, must_contain
from sparsecap_jax.decoding.options import Decoded, DecodeOptions, penalty_factors

__all__ = [
    "Automaton",
    "Constraint",
    "DecodeOptions",
    "Decoded",
    "Ensemble",
    "Prefix",
    "attention_weights",
    "decode",
    "decode_encoded",
    "make_ensemble",
    "must_contain",
    "penalty_factors",
]
