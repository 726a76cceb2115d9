"""Tokenizers: captions to token ids and back (see docs/tokenizers.md).

`TOKENIZERS` maps names to classes; "character" is what the reference calls "char".
"""

import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from sparsecap_jax.errors import ConfigError, DataError
from sparsecap_jax.settings import Registry, checked, fields_of
from sparsecap_jax.tokenizers.base import (
    BpeTokenizer,
    CharTokenizer,
    Tokenizer,
    TokenizerConfig,
    UnigramTokenizer,
    WordTokenizer,
)
from sparsecap_jax.tokenizers.radix import RadixTokenizer

_CLASSES = (WordTokenizer, RadixTokenizer, UnigramTokenizer, BpeTokenizer, CharTokenizer)
TOKENIZERS: Registry[type[Tokenizer]] = Registry(
    "tokenizer.name", {cls.name: cls for cls in _CLASSES} | {"character": CharTokenizer}, Tokenizer
)

__all__ = [
    "TOKENIZERS",
    "BpeTokenizer",
    "CharTokenizer",
    "RadixTokenizer",
    "Tokenizer",
    "TokenizerConfig",
    "UnigramTokenizer",
    "WordTokenizer",
    "make_tokenizer",
    "read_captions",
    "train_from_file",
    "train_tokenizer",
]


def make_tokenizer(
    name_or_config: str | Mapping[str, Any] | Any, directory: str | os.PathLike, **options: Any
) -> Tokenizer:
    """Load the tokenizer that a config names from its folder.

    Args:
        name_or_config: a name, or `config.tokenizer`; fields that are None count as absent.
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


def read_captions(path: str | os.PathLike) -> list[str]:
    """Read a UTF-8 text file of one caption a line; blank lines are left out.

    Raises:
        DataError: the file is missing, holds no caption, or a line is not UTF-8.
    """
    try:
        text = pathlib.Path(path).read_text("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; expected a text file of captions") from error
    except UnicodeDecodeError as error:
        lines = (error.object[: error.start] + b".").splitlines()
        place = f"line {len(lines)} is not UTF-8 (byte {len(lines[-1]) - 1})"
        raise DataError(f"{path}: {place}") from error
    captions = [line.strip() for line in text.split("\n") if line.strip()]
    if not captions:
        raise DataError(f"{path}: no captions; expected one a line")
    return captions


def train_from_file(
    name: str,
    captions_file: str | os.PathLike,
    directory: str | os.PathLike,
    vocab_size: int,
    **options: Any,
) -> Tokenizer:
    """Train a tokenizer on the captions of a text file; see `read_captions`, `train_tokenizer`."""
    captions = read_captions(captions_file)
    return train_tokenizer(name, captions, directory, vocab_size=vocab_size, **options)


def _chosen(config: Any, options: Mapping[str, Any]) -> tuple[type[Tokenizer], dict[str, Any]]:
    """The class that a config names, and the other fields, checked."""
    config = {"name": config} if isinstance(config, str) else config
    fields = {key: value for key, value in {**config, **options}.items() if value is not None}
    if "name" not in fields:
        raise ConfigError(f"tokenizer.name is missing; expected one of {', '.join(TOKENIZERS)}")
    cls = TOKENIZERS[fields.pop("name")]
    known = fields_of(cls.config)
    return cls, {key: checked(value, known, key, "tokenizer") for key, value in fields.items()}
