"""Searches for captions, for every model through `encode`, `init_carry` and `step` alone.

`decode` is the entry; `DecodeOptions` says what to search for, `Decoded` holds what was found.
Names are loaded when they are first used: the options need no JAX.
"""

from typing import TYPE_CHECKING

from sparsecap_jax import lazy

if TYPE_CHECKING:
    from sparsecap_jax.decoding.attention import attention_weights as attention_weights
    from sparsecap_jax.decoding.constraints import Constraint as Constraint
    from sparsecap_jax.decoding.constraints import Prefix as Prefix
    from sparsecap_jax.decoding.ensemble import Ensemble as Ensemble
    from sparsecap_jax.decoding.ensemble import make_ensemble as make_ensemble
    from sparsecap_jax.decoding.entries import decode as decode
    from sparsecap_jax.decoding.entries import decode_encoded as decode_encoded
    from sparsecap_jax.decoding.entries import prepare as prepare
    from sparsecap_jax.decoding.lexical import Automaton as Automaton
    from sparsecap_jax.decoding.lexical import must_contain as must_contain
    from sparsecap_jax.decoding.options import DecodeOptions as DecodeOptions
    from sparsecap_jax.decoding.stepper import Decoded as Decoded
    from sparsecap_jax.decoding.stepper import penalty_factors as penalty_factors

_HOMES = {
    "Automaton": "lexical",
    "Constraint": "constraints",
    "DecodeOptions": "options",
    "Decoded": "stepper",
    "Ensemble": "ensemble",
    "Prefix": "constraints",
    "attention_weights": "attention",
    "decode": "entries",
    "decode_encoded": "entries",
    "make_ensemble": "ensemble",
    "must_contain": "lexical",
    "penalty_factors": "stepper",
    "prepare": "entries",
}
__all__ = [*_HOMES]
__getattr__ = lazy(__name__, _HOMES)
