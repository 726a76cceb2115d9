"""A finished run, read without JAX: names of the files of a run directory, and their content."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from sparsecap_jax.data.config import DataConfig
from sparsecap_jax.errors import CheckpointError, ConfigError, SparsecapError
from sparsecap_jax.files import read_settings
from sparsecap_jax.runs.weights import load_weights
from sparsecap_jax.settings import Range, build, check_range, coerce, fields_of
from sparsecap_jax.sparse.models import SPARSE_MODELS, make_sparse_model
from sparsecap_jax.tokenizers import Tokenizer, make_tokenizer

CONFIG = "config.json"
TOKENIZER = "tokenizer"
WEIGHTS = "weights.npz"
INITIAL_WEIGHTS = "initial_weights.npz"
EXTRACTOR = "extractor.json"
SEARCH = "search.json"
PARAMS = "params.json"
IMPORTED = "imported.json"


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A trained model of the sparse runtime, ready to caption.

    Attributes:
        directory: the run directory.
        config: the parts of its config that captioning needs: `model`, `tokenizer`, `data` and
            `max_seq_length`.
        tokenizer: its tokenizer.
        model: its model, see `sparsecap_jax.sparse`.
        extractor: see `LoadedRun`.
        search: see `LoadedRun`.
    """

    directory: pathlib.Path
    config: ConfigDict
    tokenizer: Tokenizer
    model: Any
    extractor: Mapping[str, Any]
    search: Mapping[str, Any]


def has_sparse_runtime(directory: pathlib.Path) -> bool:
    """Return whether `load_finished` can read a run: its weights are final, its model is known."""
    if not ((directory / WEIGHTS).exists() and (directory / CONFIG).exists()):
        return False
    with contextlib.suppress(SparsecapError):
        model = read_settings(directory / CONFIG).get("model")
        return isinstance(model, Mapping) and model.get("name") in list(SPARSE_MODELS)
    return False


def load_finished(directory: pathlib.Path) -> FinishedRun:
    """Load a run directory with final weights for the sparse runtime.

    Raises:
        CheckpointError: its config, its tokenizer or its notes are faulty, or its weights are
            corrupt or do not fit the config.
    """
    path = directory / CONFIG
    try:
        config = read_settings(path)
        if config.get("format_version") != 1:
            raise ConfigError(f"format_version is {config.get('format_version')!r}; expected 1")
        for section in ("model", "data", "tokenizer"):
            if not isinstance(config.get(section), Mapping):
                raise ConfigError(f"config.{section}: missing; expected a section")
            coerce(config[section].get("name"), str, f"config.{section}.name")
        longest = coerce(config.get("max_seq_length"), int, "config.max_seq_length")
        check_range("config.max_seq_length", longest, Range(3, 1000))
        config = {key: config[key] for key in ("model", "tokenizer", "max_seq_length")} | {
            "data": dataclasses.asdict(build(DataConfig, config["data"], "config.data"))
        }
        tokenizer = make_tokenizer(config["tokenizer"], directory / TOKENIZER)
        fields = sparse_fields(config, tokenizer.vocab_size)
        params = load_weights(directory / WEIGHTS)["params"]
        model = make_sparse_model(fields, params)
        return FinishedRun(directory, ConfigDict(config), tokenizer, model, *read_notes(directory))
    except SparsecapError as error:
        raise CheckpointError(f"{path}: {error}") from error


def sparse_fields(config: Any, vocab_size: int) -> dict[str, Any]:
    """Return the argument of `make_sparse_model`, with the fields that other sections give."""
    section, data = dict(config["model"]), config["data"]
    fields = fields_of(SPARSE_MODELS[section["name"]])
    section["feature_size"] = data["feature_size"]
    section["vocab_size"] = section.get("vocab_size") or vocab_size
    if "max_seq_length" in fields:
        section["max_seq_length"] = config["max_seq_length"]
    return section


def read_notes(directory: pathlib.Path) -> list[dict[str, Any]]:
    """Return the settings of the extractor and of the search, `{}` where a run has none."""
    files = [directory / name for name in (EXTRACTOR, SEARCH)]
    return [read_settings(file) if file.exists() else {} for file in files]
