"""A finished run, read without JAX: names of the files of a run directory, and their content."""

import contextlib
import dataclasses
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from sparsecap_jax.captioning.search import SearchOptions
from sparsecap_jax.data.config import DataConfig
from sparsecap_jax.data.extractor_notes import EXTRACTOR
from sparsecap_jax.errors import CheckpointError, ConfigError, SparsecapError
from sparsecap_jax.files import absent, foreign_errors, read_settings
from sparsecap_jax.model_files import ModelFile
from sparsecap_jax.runs.weights import MODEL_SUFFIX, SAFETENSORS, load_weights, read_model
from sparsecap_jax.settings import Range, build, check_range, coerce, fields_of
from sparsecap_jax.sparse.models import SPARSE_MODELS, make_sparse_model
from sparsecap_jax.tokenizers import Tokenizer, make_tokenizer
from sparsecap_jax.trees import checksum
from sparsecap_jax.types import PyTree

CONFIG = "config.json"
TOKENIZER = "tokenizer"
MODEL = f"model{MODEL_SUFFIX}"
NPZ = "weights.npz"
INITIAL_WEIGHTS = "initial_weights.npz"
SEARCH = "search.json"
PARAMS = "params.json"
SUMMARY = "summary.json"
IMPORTED = "imported.json"

FINISHED = (MODEL, NPZ, f"weights{SAFETENSORS}")


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A trained model of the sparse runtime, ready to caption.

    Attributes:
        directory: the run directory, or the model file.
        config: the parts of its config that captioning needs: `model`, `tokenizer`, `data` and
            `max_seq_length`.
        tokenizer: its tokenizer.
        model: its model, see `sparsecap_jax.sparse`.
        extractor: see `LoadedRun`.
        search: see `LoadedRun`.
        version: time and size of the file of its weights.
    """

    directory: pathlib.Path
    config: ConfigDict
    tokenizer: Tokenizer
    model: Any
    extractor: Mapping[str, Any]
    search: Mapping[str, Any]
    version: tuple[int, int] | None

    @property
    def params(self) -> PyTree:
        """The weights, read anew: the model has those that were kept alone."""
        self.check_unchanged()  # the file is there
        params = load_weights(present_weights(self.directory))["params"]
        self.check_unchanged()
        return params

    def check_unchanged(self) -> None:
        """Raise a CheckpointError where the weights were written anew, or are gone."""
        if _version(self.directory) != self.version:
            raise CheckpointError(
                f"{self.directory}: the weights have changed since they were loaded; load it again"
            )


def _version(run: pathlib.Path) -> tuple[int, int] | None:
    file = finished_weights(run)
    if file is None:
        return None
    status = file.stat()
    return status.st_mtime_ns, status.st_size


def finished_weights(run: str | pathlib.Path) -> pathlib.Path | None:
    """Return the file of a run's finished weights; None where there is none."""
    run = pathlib.Path(run)
    files = [run] if run.is_file() else [run / name for name in FINISHED]
    return next((file for file in files if file.exists()), None)


def present_weights(run: pathlib.Path) -> pathlib.Path:
    """Return the file of a run's finished weights; a CheckpointError where there is none."""
    file = finished_weights(run)
    if file is None:
        raise CheckpointError(absent(run / NPZ, "finished weights"))
    return file


def of_other_weights(scores: pathlib.Path, params: PyTree) -> bool:
    """Return whether a `scores.json` of a run says that it was made by other weights than these."""
    noted = read_settings(scores, "scores").get("weights") if scores.is_file() else None
    return noted is not None and noted != checksum(params)


def has_sparse_runtime(run: pathlib.Path) -> bool:
    """Return whether `load_finished` can read a run: its weights are final, its model is known."""
    with contextlib.suppress(SparsecapError):
        if run.is_file():
            with ModelFile(run) as file:
                config = file_settings(run, file)[0]
        elif finished_weights(run) and (run / CONFIG).exists():
            config = read_settings(run / CONFIG)
        else:
            return False
        model = config.get("model")
        return isinstance(model, Mapping) and model.get("name") in list(SPARSE_MODELS)
    return False


def load_finished(run: pathlib.Path) -> FinishedRun:
    """Load a run directory with final weights, or a model file, for the sparse runtime.

    Raises:
        CheckpointError: its config, its tokenizer or its notes are faulty, or its weights are
            corrupt or do not fit the config.
    """
    try:
        version = _version(run)
        if run.is_file():
            with ModelFile(run) as file:
                settings, *notes = file_settings(run, file)
                config = _checked(settings)
                tokenizer = file_tokenizer(run, file, config["tokenizer"])
                params = read_model(run, file)["params"]
        else:
            config, notes = _checked(read_settings(run / CONFIG)), read_notes(run)
            tokenizer = make_tokenizer(config["tokenizer"], run / TOKENIZER)
            params = load_weights(present_weights(run))["params"]
        model = make_sparse_model(sparse_fields(config, tokenizer.vocab_size), params)
        extractor, search = notes
        return FinishedRun(run, ConfigDict(config), tokenizer, model, extractor, search, version)
    except SparsecapError as error:
        named = str(error).startswith(str(run))
        raise CheckpointError(str(error) if named else f"{run}: {error}") from error


def _checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a config that captioning needs."""
    if config.get("format_version") != 1:
        raise ConfigError(f"format_version is {config.get('format_version')!r}; expected 1")
    for section in ("model", "data", "tokenizer"):
        if not isinstance(config.get(section), Mapping):
            raise ConfigError(f"config.{section}: missing; expected a section")
        coerce(config[section].get("name"), str, f"config.{section}.name")
    longest = coerce(config.get("max_seq_length"), int, "config.max_seq_length")
    check_range("config.max_seq_length", longest, Range(3, 1000))
    return {key: config[key] for key in ("model", "tokenizer", "max_seq_length")} | {
        "data": dataclasses.asdict(build(DataConfig, config["data"], "config.data"))
    }


def file_settings(path: pathlib.Path, file: ModelFile) -> list[dict[str, Any]]:
    """Return config, extractor and search options of a model file; a CheckpointError if faulty."""
    notes = [file.notes.get(name, {}) for name in ("config", "extractor", "search")]
    if not all(isinstance(value, dict) for value in notes) or not notes[0]:
        raise CheckpointError(f"{path}: weights without a config; expected those of a run")
    _check_search(notes[2], f"{path}: search")
    return notes


def file_tokenizer(path: pathlib.Path, file: ModelFile, section: Any) -> Tokenizer:
    """Return the tokenizer of a model file."""
    with tempfile.TemporaryDirectory() as folder, _named(path, folder):
        for name, content in file.files().items():
            target = pathlib.Path(folder, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        return make_tokenizer(section, pathlib.Path(folder, TOKENIZER))


@contextlib.contextmanager
def _named(path: pathlib.Path, folder: str) -> Iterator[None]:
    """Name a model file, not the temporary folder of its files, in errors about them."""
    try:
        with foreign_errors(f"{path}: its files cannot be unpacked", CheckpointError):
            yield
    except SparsecapError as error:
        raise type(error)(str(error).replace(folder, str(path))) from error


def _check_search(options: Mapping[str, Any], path: str) -> None:
    try:
        build(SearchOptions, options, path)
    except ConfigError as error:  # of options that do not fit each other
        if path in str(error):
            raise
        raise ConfigError(f"{path}: {error}") from error


def sparse_fields(config: Any, vocab_size: int) -> dict[str, Any]:
    """Return the argument of `make_sparse_model`, with the fields that other sections give."""
    section, data = dict(config["model"]), config["data"]
    known = section["name"] in SPARSE_MODELS  # else `make_sparse_model` says so
    fields = fields_of(SPARSE_MODELS[section["name"]]) if known else ()
    section["feature_size"] = data["feature_size"]
    section["vocab_size"] = section.get("vocab_size") or vocab_size
    if "max_seq_length" in fields:
        section["max_seq_length"] = config["max_seq_length"]
    return section


def read_notes(directory: pathlib.Path) -> list[dict[str, Any]]:
    """Return the settings of the extractor and of the search, `{}` where a run has none."""
    files = [directory / name for name in (EXTRACTOR, SEARCH)]
    notes = [read_settings(file) if file.exists() else {} for file in files]
    _check_search(notes[1], str(files[1]))
    return notes
