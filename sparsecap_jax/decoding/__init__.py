"""Searches for captions, for every model through `encode`, `init_carry` and `step` alone.

`decode` is the entry; `DecodeOptions` says what to search for, `Decoded` holds what was found.
Names are loaded when they are first used: the options need no JAX.
"""

from sparsecap_jax import lazy

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
