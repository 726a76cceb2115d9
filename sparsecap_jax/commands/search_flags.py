"""The flags of a search, the same for every command that captions."""

import pathlib
from collections.abc import Mapping
from typing import Any

from absl import flags

from sparsecap_jax.data.karpathy import normalize_id
from sparsecap_jax.errors import DataError
from sparsecap_jax.files import read_json

# Kept beside SearchOptions by hand: importing it would start JAX before flags are parsed.
_SEARCHES = ("greedy", "beam", "diverse_beam", "sample", "gumbel")
_LISTS = ("suppress", "bad_endings")


def define() -> None:
    """Define a flag for every field of `SearchOptions`; unset ones keep its default."""
    flags.DEFINE_enum("search", None, _SEARCHES, "How to search; beam by default.")
    for name, text in (
        ("beam_size", "Beams; 1 is greedy search."),
        ("num_samples", "Captions drawn per image by sample and gumbel."),
        ("num_groups", "Groups of diverse_beam; 0: every beam is one."),
        ("top_k", "Sample among the k most probable tokens."),
        ("seed", "Of sample and gumbel."),
        ("no_repeat_ngram", "Forbid n-grams of so many tokens to come twice."),
        ("min_length", "Least number of tokens before the end."),
    ):
        flags.DEFINE_integer(name, None, text)
    for name, text in (
        ("temperature", "Divides log-probs."),
        ("top_p", "Sample among the most probable tokens of this mass."),
        ("diversity", "Nats off a token that earlier groups of diverse_beam chose."),
    ):
        flags.DEFINE_float(name, None, text)
    flags.DEFINE_bool("no_repeat", None, "Forbid the same token twice in a row.")
    flags.DEFINE_bool("suppress_unk", None, "Never produce the token of unknown words.")
    flags.DEFINE_list("suppress", None, "Words that are never produced.")
    flags.DEFINE_list("bad_endings", None, "Words that no caption may end with.")
    flags.DEFINE_string("length_penalty", None, "wu_<alpha> or avg_0.")
    either = "or FILE.json with {image id: %s}."
    flags.DEFINE_string("prefix", None, f"Text that captions start with, {either % 'text'}")
    flags.DEFINE_string(
        "required",
        None,
        f"Words that captions contain, between commas, dog|puppy for either; {either % '[words]'}",
    )


def given_options() -> dict[str, Any]:
    """What of `SearchOptions` was given on the command line.

    Raises:
        DataError: a file of `--prefix` or `--required` is missing or holds something else.
    """
    names = (
        *("search", "beam_size", "num_samples", "num_groups", "top_k", "seed", "no_repeat_ngram"),
        *("min_length", "temperature", "top_p", "diversity", "no_repeat", "suppress_unk"),
        *("suppress", "bad_endings", "length_penalty", "prefix", "required"),
    )
    values = {name: flags.FLAGS[name].value for name in names}
    given = {name: value for name, value in values.items() if value is not None}
    for name in _LISTS:
        if name in given:
            given[name] = tuple(given[name])
    if given.get("prefix", "").endswith(".json"):
        given["prefix"] = _by_image(given["prefix"], str)
    if "required" in given:
        text = given["required"]
        words = tuple(word.strip() for word in text.split(","))
        given["required"] = _by_image(text, list) if text.endswith(".json") else words
    return given


def _by_image(path: str, kind: type) -> Mapping[Any, Any]:
    """Read `{image id: value}`."""
    content = read_json(pathlib.Path(path))
    what = "text" if kind is str else "a list of words"
    good = isinstance(content, dict) and all(isinstance(v, kind) for v in content.values())
    if not good:
        raise DataError(f"{path}: expected an object with {what} for each image id")
    return {normalize_id(image_id): value for image_id, value in content.items()}
