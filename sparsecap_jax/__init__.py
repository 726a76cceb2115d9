"""Sparse image captioning and pruning in JAX.

    import sparsecap_jax as sc

What users need is reached from here and loaded when it is first used; see docs/api.md.
"""

import importlib
from typing import Any

from sparsecap_jax.version import __version__

# Public names by the module that they live in.
_NAMES = {
    "captioner": "Captioner",
    "captioning.search": "SearchOptions",
    "commands.evaluate": "evaluate",
    "data.datasets": "Contents Dataset load_dataset",
    "data.records": "Record",
    "decoding": "DecodeOptions decode",
    "errors": "CheckpointError ConfigError DataError SparsecapError",
    "evaluation.metrics": "score_captions",
    "extend": "register",
    "interop.reference": "load_state_dict",
    "models": "make_model",
    "pruning": "apply_masks finalize make_pruner Pruner sparse_step sparsity",
    "runs.config": "default_config",
    "runs.directory": "load_run save_run",
    "runs.loop": "train",
    "settings": "use_plugin",
    "tokenizers": "Tokenizer make_tokenizer train_tokenizer",
    "training.objectives": "Objective Task",
    "types": "Batch Regions",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}
_RENAMED = {"evaluate": "evaluate_run"}
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
    module = importlib.import_module(f"{__name__}.{_HOMES[name]}")
    value = getattr(module, _RENAMED.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
