"""From options to the search that they ask for; free of JAX, as all searches are."""

from functools import partial
from typing import Any

from jaxtyping import Int

from sparsecap_jax.decoding.beam import beam_search, diverse_beam_search
from sparsecap_jax.decoding.constraints import compose
from sparsecap_jax.decoding.lexical import Automaton, lexical
from sparsecap_jax.decoding.options import DecodeOptions
from sparsecap_jax.decoding.search import sequential_search
from sparsecap_jax.decoding.stepper import Decoded, Search
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.types import ArrayLike, PyTree


def check_images(batch: int, prefix: PyTree, required: Automaton | None) -> None:
    """Raise a ConfigError where there are no images, or `prefix` or `required` has others."""
    if not batch:
        raise ConfigError("decode: regions: found no images, expected at least one")
    for name, argument in (("prefix", prefix), ("required", required and required.default)):
        if argument is not None and argument.shape[0] != batch:
            raise ConfigError(f"decode: {name}: found {argument.shape[0]} images, expected {batch}")


def find_captions(
    model: Any,
    variables: PyTree,
    context: PyTree,
    options: DecodeOptions,
    factors: ArrayLike,
    keys: PyTree,
    prefix: Int[ArrayLike, "B P"] | None,
    required: Automaton | None,
    dropout_rng: PyTree = None,
) -> Decoded:
    """Search for captions of encoded images; see `Search` and `entries.decode`."""
    by_state = required is not None and options.method == "beam" and options.num_groups == 1
    extra = []
    if required is not None and not by_state:
        extra.append(partial(lexical, automaton=required, eos_id=options.eos_id))
    constrain = compose(options, prefix, extra)
    search = Search(model, variables, context, options, constrain, factors, keys, dropout_rng)
    if options.method != "beam":
        return sequential_search(search)
    if options.num_groups > 1:
        return diverse_beam_search(search)
    return beam_search(search, required)
