"""From search options in words to the token ids and arrays that `decode` takes."""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparsecap_jax.array_modules.numpy_arrays import fold_in, tree_map
from sparsecap_jax.captioning.search import SearchOptions
from sparsecap_jax.data.records import ImageId, by_id, normalize_id
from sparsecap_jax.decoding import DecodeOptions, must_contain
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.tokenizers import Tokenizer


def decode_options(search: SearchOptions, tokenizer: Tokenizer, max_length: int) -> DecodeOptions:
    """Return the options of `decode`: all of `search` but `prefix`, `required` and `seed`.

    Raises:
        ConfigError: a word that is unknown or takes several tokens, or an option that does not fit
            the tokenizer or `max_length`.
    """
    names = {field.name for field in dataclasses.fields(DecodeOptions)}
    options = {
        name: value for name, value in vars(search).items() if name in names and search.uses(name)
    }
    options["method"] = "beam" if search.search == "diverse_beam" else search.search
    if search.search == "beam" and search.beam_size == 1:
        options |= {"method": "greedy", "length_penalty": "", "temperature": 1.0}
    if search.search == "diverse_beam":
        options["num_groups"] = search.num_groups or search.beam_size
    for name in ("suppress", "bad_endings"):
        options[name] = [_one_id(tokenizer, word, name) for word in options[name]]
    if search.suppress_unk and tokenizer.unk_id is None:
        raise ConfigError(
            f"search option suppress_unk: tokenizer {tokenizer.name!r} spells unknown words "
            "with the tokens of others; expected False"
        )
    return DecodeOptions(
        max_length=max_length,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        # Radix tokens spell an unknown word in several ids; there is no single one to suppress.
        unk_id=-1 if tokenizer.unk_id is None else tokenizer.unk_id,
        **options,
    )


def image_options(
    search: SearchOptions,
    tokenizer: Tokenizer,
    options: DecodeOptions,
    image_ids: Sequence[ImageId],
) -> dict[str, Any]:
    """Return the arguments of `decode` that differ from image to image, a row for each of N images.

    They are made for all images at once, so that batches share one shape.

    Returns:
        `rng`, the data of random keys, uint32 `[N, 2]`; `prefix`, int32 `[N, P]`; `required`, an
        automaton per image; None for what the search does not need.

    Raises:
        ConfigError: words that are unknown, too many or too long.
    """
    keys = prefix = required = None
    if search.uses("seed"):
        ids = np.array([zlib.crc32(str(image_id).encode()) for image_id in image_ids], np.uint32)
        # As `jax.random.key` makes it of a seed.
        key = np.array([0, search.seed & 0xFFFFFFFF], np.uint32)
        keys = fold_in(np.tile(key, (len(ids), 1)), ids)
    if search.prefix:
        texts = _of_images(search.prefix, image_ids, "")
        rows = [_text_ids(tokenizer, text, "prefix") for text in texts]
        width = max(map(len, rows))
        if width > options.max_length:
            raise ConfigError(
                f"search option prefix: found {width} tokens, expected at most {options.max_length}"
            )
        padded = [(*row, *[options.pad_id] * (width - len(row))) for row in rows]
        prefix = np.array(padded, np.int32).reshape(len(rows), width)
    if search.required:
        phrases = [
            [_alternatives(tokenizer, text) for text in texts]
            for texts in _of_images(search.required, image_ids, ())
        ]
        required = must_contain(phrases, options)

    def for_all(array):
        return np.broadcast_to(array, (len(image_ids), *array.shape[1:]))

    return {"rng": keys, **tree_map(for_all, {"prefix": prefix, "required": required})}


def _of_images(value: Any, image_ids: Sequence[ImageId], default: Any) -> list[Any]:
    """Return the value of each image, or the only value where all images share it."""
    if isinstance(value, Mapping):
        values = by_id(value.items(), "prefix or required")
        return [values.get(normalize_id(image_id), default) for image_id in image_ids]
    return [value]


def _text_ids(tokenizer: Tokenizer, text: str, option: str) -> tuple[int, ...]:
    """Return the ids of a text that has no unknown words."""
    ids = tuple(tokenizer.encode(text, add_special=False))
    unknown = tokenizer.unk_ids
    if any(ids[i : i + len(unknown)] == unknown for i in range(0, len(ids), len(unknown))):
        raise ConfigError(
            f"search option {option}: {text!r} has a word that the tokenizer does not know"
        )
    return ids


def _one_id(tokenizer: Tokenizer, word: str, option: str) -> int:
    ids = _text_ids(tokenizer, word, option)
    if len(ids) != 1:
        raise ConfigError(
            f"search option {option}: {word!r} takes {len(ids)} tokens of tokenizer "
            f"{tokenizer.name!r}, expected one"
        )
    return ids[0]


def _alternatives(tokenizer: Tokenizer, text: str) -> list[tuple[int, ...]]:
    """Return the ids of the phrases between "|"."""
    phrases = [_text_ids(tokenizer, phrase.strip(), "required") for phrase in text.split("|")]
    if not all(phrases):
        raise ConfigError(f"search option required: found {text!r}, expected words around '|'")
    return phrases
