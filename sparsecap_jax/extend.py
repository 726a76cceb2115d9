"""Registration of user-defined models, pruners, objectives, datasets and so on."""

import importlib
from typing import Any

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.settings import Registry, nearest

# Registries by kind: module and attribute, loaded when used.
REGISTRIES = {
    "model": ("models", "MODELS"),
    "pruner": ("pruning", "PRUNERS"),
    "objective": ("training.objectives", "OBJECTIVES"),
    "tokenizer": ("tokenizers", "TOKENIZERS"),
    "dataset": ("data.datasets", "DATASETS"),
    "features": ("data.stores", "STORES"),
    "extractor": ("photos.extractors", "EXTRACTORS"),
}


def registry(kind: str) -> Registry:
    """Return the registry of a kind; a ConfigError where there is no such kind."""
    if kind not in REGISTRIES:
        raise ConfigError(f"kind is {kind!r}; {nearest(kind, REGISTRIES)}")
    module, attribute = REGISTRIES[kind]
    return getattr(importlib.import_module(f"sparsecap_jax.{module}"), attribute)


def register(kind: str, name: str, entry: Any) -> Any:
    """Add an entry that configs may then select by name; see docs/extend.md.

    Args:
        kind: `model`, `pruner`, `objective`, `tokenizer`, `dataset`, `features` or `extractor`.
        name: its name in configs.
        entry: the class or function, which is returned.

    Raises:
        ConfigError: no such kind, or the name is taken.
    """
    return registry(kind).register(name, entry)
