"""Options of a search, in words; free of JAX.

The flags of the commands and docs/search_options.md are generated from `SearchOptions`.
"""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from sparsecap_jax.decoding.options import parsed_penalty
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.settings import Field, Range, check_range, coerce, fields_of, nearest

Search = Literal["greedy", "beam", "diverse_beam", "sample", "gumbel"]
SEARCHES: tuple[str, ...] = typing.get_args(Search)
_BEAMS, _SAMPLERS = SEARCHES[1:3], SEARCHES[3:]
USED_BY = {
    "beam_size": _BEAMS,
    "length_penalty": _BEAMS,
    "num_groups": ("diverse_beam",),
    "diversity": ("diverse_beam",),
    "consensus": _BEAMS,
    "num_samples": _SAMPLERS,
    "top_k": _SAMPLERS,
    "top_p": _SAMPLERS,
    "seed": _SAMPLERS,
    "temperature": _BEAMS + _SAMPLERS,
}
"""Searches that use an option; all of them where it is not named here."""
BY_IMAGE = ("prefix", "required")
"""Options that may differ from image to image."""


@dataclasses.dataclass(frozen=True)
class SearchOptions:
    """Options of a search, with words where `decoding.DecodeOptions` has token ids.

    Attributes:
        search: algorithm that looks for captions.
        beam_size: number of beams; one beam is greedy search.
        length_penalty: "wu_ALPHA" or "avg_0" to compare captions of different lengths; "" for none.
        num_groups: number of groups of beams, a divisor of `beam_size`; 0 makes a group of each
            beam.
        diversity: nats taken off a token for each beam of an earlier group that chose it.
        consensus: number of samples that the beams of an image are compared with: the caption most
            like them is the best, see `captioning.consensus`; 0 for the most probable one.
        num_samples: number of captions drawn for each image.
        temperature: divisor of the log-probs.
        top_k: number of most probable tokens to sample from; 0 for all.
        top_p: probability mass of the most probable tokens to sample from.
        seed: seed of the samples, of a consensus too; those of an image depend on it and on the
            image's id alone.
        no_repeat: forbid the same token twice in a row.
        no_repeat_ngram: length of n-grams that may not occur twice, in tokens; 0 for none.
        suppress: words that are never produced, of one token each.
        suppress_unk: never produce the token of unknown words.
        bad_endings: words that no caption may end with, of one token each.
        min_length: least number of tokens before the end of a caption.
        prefix: text that captions start with; may differ from image to image.
        required: words or phrases that captions contain, "dog|puppy" for either of two; may differ
            from image to image. Turns "beam" into a constrained beam search.

    `prefix` and `required` that differ from image to image are mappings by image id.

    Raises:
        ConfigError: a value of the wrong type or out of range, or one that the search cannot use.
    """

    search: Search = "beam"
    beam_size: Annotated[int, Range(1)] = 5
    length_penalty: str = ""
    num_groups: Annotated[int, Range(0)] = 0
    diversity: Annotated[float, Range(0)] = 0.5
    consensus: Annotated[int, Range(0)] = 0
    num_samples: Annotated[int, Range(1)] = 1
    temperature: Annotated[float, Range(0, open_low=True)] = 1.0
    top_k: Annotated[int, Range(0)] = 0
    top_p: Annotated[float, Range(0, 1, open_low=True)] = 1.0
    seed: int = 0
    no_repeat: bool = False
    no_repeat_ngram: Annotated[int, Range(0)] = 0
    suppress: Sequence[str] = ()
    suppress_unk: bool = False
    bad_endings: Sequence[str] = ()
    min_length: Annotated[int, Range(0)] = 0
    prefix: str | Mapping[int | str, str] = ""
    required: Sequence[str] | Mapping[int | str, Sequence[str]] = ()

    def __post_init__(self):
        for name, field in fields_of(SearchOptions).items():
            where, value = f"search option {name}", getattr(self, name)
            if name in BY_IMAGE and isinstance(value, Mapping):
                value = {key: _coerced(one, field, where) for key, one in value.items()}
            else:
                value = _coerced(value, field, where)
            object.__setattr__(self, name, value)
            if not self.uses(name) and value != field.default:
                raise ConfigError(
                    f"{where}: found {value!r} with search {self.search!r}; "
                    f"only {', '.join(USED_BY[name])} can use it"
                )
        if parsed_penalty(self.length_penalty) is None:
            raise ConfigError(
                f"search option length_penalty: found {self.length_penalty!r}, "
                'expected "", "wu_ALPHA" or "avg_ALPHA"'
            )
        if self.consensus and self.beam_size == 1:
            raise ConfigError(
                "search option consensus: found one beam; expected several to choose from"
            )
        if self.num_groups and self.beam_size % self.num_groups:
            raise ConfigError(
                f"search option num_groups: found {self.num_groups}, "
                f"expected a divisor of beam_size {self.beam_size}"
            )

    def uses(self, option: str) -> bool:
        """Return whether the search uses an option."""
        of_samples = option == "seed" and self.consensus > 0
        return of_samples or self.search in USED_BY.get(option, SEARCHES)


def search_options(given: Mapping[str, Any]) -> SearchOptions:
    """Return `SearchOptions(**given)`; a ConfigError, and no TypeError, for an unknown name."""
    check_names(given)
    return SearchOptions(**given)


def check_names(given: Mapping[str, Any]) -> None:
    """Raise a ConfigError where there is no search option of a name."""
    known = fields_of(SearchOptions)
    for name in given:
        if name not in known:
            raise ConfigError(f"search option {name}: unknown; {nearest(name, known)}")


def _coerced(value: Any, field: Field, where: str) -> Any:
    if isinstance(field.default, tuple):
        if isinstance(value, str):
            raise ConfigError(f"{where}: found text, expected a list of words")
        return coerce(value, tuple[str, ...], where)
    value = coerce(value, field.hint, where)
    if field.range:
        check_range(where, value, field.range)
    return value
