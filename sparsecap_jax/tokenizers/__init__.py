"""Tokenizers: captions to token ids and back (see docs/tokenizers.md).

`TOKENIZERS` maps names to classes; "character" is what the reference calls "char".
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.settings import Registry
from sparsecap_jax.tokenizers.base import (
    BpeTokenizer,
    CharTokenizer,
    Piece,
    Tokenizer,
    TokenizerConfig,
    UnigramTokenizer,
    WordTokenizer,
)
from sparsecap_jax.tokenizers.radix import RadixTokenizer
from sparsecap_jax.tokenizers.training import read_captions

TOKENIZERS: Registry[type[Tokenizer]] = Registry(
    "tokenizer.name",
    {
        "word": WordTokenizer,
        "radix": RadixTokenizer,
        "unigram": UnigramTokenizer,
        "bpe": BpeTokenizer,
        "char": CharTokenizer,
        "character": CharTokenizer,
    },
    Tokenizer,
)

__all__ = [
    "TOKENIZERS",
    "BpeTokenizer",
    "CharTokenizer",
    "Piece",
    "RadixTokenizer",
    "Tokenizer",
    "TokenizerConfig",
    "UnigramTokenizer",
    "WordTokenizer",
    "make_tokenizer",
    "read_captions",
    "tokenizer_class",
    "train_from_file",
    "train_tokenizer",
]


def tokenizer_class(name: Any) -> type[Tokenizer]:
    """Return the class of that name.

    Raises:
        ConfigError: there is none, or what is registered under that name is no tokenizer.
    """
    entry = TOKENIZERS[name]
    if not (isinstance(entry, type) and issubclass(entry, Tokenizer)):
        raise ConfigError(f"tokenizer.name is {name!r}; expected a subclass of Tokenizer")
    return entry


def make_tokenizer(
    name_or_config: str | Mapping[str, Any] | Any, directory: str | os.PathLike, **options: Any
) -> Tokenizer:
    """Load the tokenizer that a config names from its folder.

    Args:
        name_or_config: a name, or `config.tokenizer`: `name`, and `radix_base` for radix tokens.
            `vocab_size` only matters for training; fields that are None count as absent.
        directory: the tokenizer's folder, or the run directory that holds it as `tokenizer/`.
        **options: further fields of the config.

    Raises:
        ConfigError: an unknown name, or options that the tokenizer does not have.
        DataError: the folder lacks the model, or it is corrupt.
    """
    cls, options = _chosen(name_or_config, options)
    options.pop("vocab_size", None)
    return cls.load(directory, **options)


def train_tokenizer(
    name_or_config: str | Mapping[str, Any] | Any,
    captions: Iterable[str],
    directory: str | os.PathLike,
    **options: Any,
) -> Tokenizer:
    """Train the tokenizer that a config describes (see `Tokenizer.train`)."""
    cls, options = _chosen(name_or_config, options)
    if "vocab_size" not in options:
        raise ConfigError("tokenizer.vocab_size is missing; expected an integer")
    return cls.train(captions, directory, **options)


def train_from_file(
    name: str,
    captions_file: str | os.PathLike,
    directory: str | os.PathLike,
    vocab_size: int,
    **options: Any,
) -> Tokenizer:
    """Train a tokenizer from a UTF-8 text file of one caption a line.

    Raises:
        DataError: the file is missing, empty, or not UTF-8; the message names the line.
        ConfigError: an unknown name or option, or a vocabulary that cannot be made.
    """
    captions = read_captions(captions_file)
    return train_tokenizer(name, captions, directory, vocab_size=vocab_size, **options)


def _chosen(
    name_or_config: Any, options: Mapping[str, Any]
) -> tuple[type[Tokenizer], dict[str, Any]]:
    """The class that a config names, and the other fields, checked."""
    config = {"name": name_or_config} if isinstance(name_or_config, str) else name_or_config
    fields = {key: value for key, value in {**config, **options}.items() if value is not None}
    if "name" not in fields:
        raise ConfigError(f"tokenizer.name is missing; expected one of {', '.join(TOKENIZERS)}")
    cls = tokenizer_class(fields.pop("name"))
    cls.check_options(fields)
    return cls, fields
