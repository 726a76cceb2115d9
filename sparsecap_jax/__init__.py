"""Sparse image captioning and pruning in JAX.

    import sparsecap_jax as sc

What users need is reached from here and loaded when it is first used; see docs/api.md.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from sparsecap_jax.version import __version__

# Public names by the module that they live in.
_NAMES = {
    "captioner": "Captioner",
    "captioning.search": "SearchOptions",
    "commands.evaluate": "evaluate",
    "commands.export": "export",
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
_HOMES["evaluate"] += ":evaluate_run"
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
