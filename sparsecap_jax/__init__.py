"""Sparse image captioning and pruning in JAX.

    import sparsecap_jax as sc

What users need is reached from here and loaded when it is first used; see docs/api.md.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
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


def lazy(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the `__getattr__` of a package, which loads what is asked for when it is first used.

    Args:
        package: name of the package; its modules are reached in this way, too.
        homes: modules of its public names; `MODULE:NAME` where a name differs there.
    """

    def load(name: str) -> Any:
        module, _, attribute = homes.get(name, name).partition(":")
        try:
            value = importlib.import_module(f"{package}.{module}")
        except ModuleNotFoundError as error:
            if name in homes or error.name != f"{package}.{name}":
                raise
            raise AttributeError(f"module {package!r} has no attribute {name!r}") from None
        if name in homes:
            value = getattr(value, attribute or name)
            setattr(sys.modules[package], name, value)
        return value

    return load


__getattr__ = lazy(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
