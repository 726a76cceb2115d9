"""Sparse image captioning and pruning in JAX.

    import sparsecap_jax as sc

What users need is reached from here and loaded when it is first used; see docs/api.md.
"""

import importlib
from typing import Any

from sparsecap_jax.version import __version__

# Public names and the modules they live in.
_HOMES = {
    "Captioner": "captioner",
    "SearchOptions": "captioning.search",
    "evaluate": "commands.evaluate:evaluate_run",
    "Contents": "data.datasets",
    "Dataset": "data.datasets",
    "load_dataset": "data.datasets",
    "Record": "data.records",
    "DecodeOptions": "decoding",
    "decode": "decoding",
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "DataError": "errors",
    "SparsecapError": "errors",
    "score_captions": "evaluation.metrics",
    "register": "extend",
    "load_state_dict": "interop.reference",
    "make_model": "models",
    "apply_masks": "pruning",
    "finalize": "pruning",
    "make_pruner": "pruning",
    "Pruner": "pruning",
    "sparse_step": "pruning",
    "sparsity": "pruning",
    "default_config": "runs.config",
    "load_run": "runs.directory",
    "save_run": "runs.directory",
    "train": "runs.loop",
    "use_plugin": "settings",
    "Tokenizer": "tokenizers",
    "make_tokenizer": "tokenizers",
    "train_tokenizer": "tokenizers",
    "Objective": "training.objectives",
    "Task": "training.objectives",
    "Batch": "types",
    "Regions": "types",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Load a public name, or a room of the package, when it is first used."""
    if name not in _HOMES:
        try:
            return importlib.import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    module, _, attribute = _HOMES[name].partition(":")
    value = getattr(importlib.import_module(f"{__name__}.{module}"), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
