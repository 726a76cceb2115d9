"""Checkpoints as the PyTorch reference lays them out: a folder, or a zip of one, read in place."""

import dataclasses
import functools
import io
import itertools
import json
import os
import pathlib
import re
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sparsecap_jax.errors import CheckpointError, DataError, SparsecapError
from sparsecap_jax.files import (
    FOREIGN,
    absent,
    foreign_errors,
    new_folder,
    read_bytes,
    unique_keys,
    write_json,
)
from sparsecap_jax.locks import locked
from sparsecap_jax.model_files import write_safetensors
from sparsecap_jax.tokenizers import Tokenizer, make_tokenizer
from sparsecap_jax.torch_files import SparseTensor, load_torch_file, save_torch_file
from sparsecap_jax.torch_files.reading import MAX_FILE_BYTES

PREFERENCE = (
    "model_best_pruned_sparse.pth",
    "model_best_pruned.pth",
    "model_best_bin_mask.pth",
    "model_best.pth",
    "model_last.pth",
)
"""Weights to take when none are asked for, best first."""

_SCORES = re.compile(r"([^/]+)/score_(\d+)\.json")  # SPLIT_beam_SIZE/score_STEP.json
_MAX_SCORES = 2**16  # bytes of such a file
SMALL_BYTES = 2**24  # of config.json and of each file of a tokenizer


@dataclasses.dataclass(frozen=True)
class ReferenceCheckpoint:
    """A checkpoint of the reference, read but not interpreted.

    Attributes:
        source: path of the folder or zip.
        config: contents of config.json.
        weights: name of the weights file that was read.
        state_dict: its tensors, see `load_torch_file`.
        tokenizer: contents of the files in `tokenizer/` by name, such as `word.model`; empty when
            there is no such folder.
        scores: contents of its files of scores, `{"test_beam_2": {"00096000": {...}}}`.
    """

    source: str
    config: dict[str, Any]
    weights: str
    state_dict: dict[str, Any]
    tokenizer: dict[str, bytes]
    scores: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def dense_state_dict(self) -> dict[str, np.ndarray]:
        """Return the tensors as dense arrays; sparse COO tensors are filled up with zeros.

        Raises:
            CheckpointError: an entry is no tensor.
        """
        dense = {}
        for name, value in self.state_dict.items():
            if not isinstance(value, SparseTensor | np.ndarray):
                what = f"{name} is a {type(value).__name__}, no tensor"
                raise CheckpointError(f"{self.source}: {self.weights}: {what}")
            dense[name] = value.to_dense() if isinstance(value, SparseTensor) else value
        return dense

    def load_tokenizer(self, config: Mapping[str, Any]) -> Tokenizer:
        """Load the tokenizer; `config` is as in `make_tokenizer`.

        Raises:
            CheckpointError: there is none.
        """
        if not self.tokenizer:
            raise CheckpointError(f"{self.source}: tokenizer/ is missing; expected its .model")
        with tempfile.TemporaryDirectory() as folder:
            for file, data in self.tokenizer.items():
                pathlib.Path(folder, file).write_bytes(data)
            try:
                return make_tokenizer(config, folder)
            except SparsecapError as error:
                message = str(error).replace(folder, f"{self.source}: tokenizer")
                raise type(error)(message) from error


def save_checkpoint_dir(
    output: pathlib.Path,
    config: Mapping[str, Any],
    weights: str,
    state_dict: Mapping[str, Any],
    tokenizer: Tokenizer,
) -> None:
    """Write a checkpoint folder of the reference; see `ReferenceCheckpoint`, `new_folder`.

    Weights are a file of PyTorch, or of safetensors if their name ends so; tensors are dense then.
    """
    with locked(output, folder=False), new_folder(output) as folder:
        if weights.endswith(".safetensors"):
            write_safetensors(folder / weights, state_dict, {"format": "pt"})
        else:
            save_torch_file(folder / weights, state_dict)
        tokenizer.save(folder / "tokenizer")
        write_json(folder / "config.json", config)


def open_checkpoint_dir(path: str | os.PathLike, weights: str | None = None) -> ReferenceCheckpoint:
    """Read a checkpoint of the reference; nothing is extracted and nothing in it is executed.

    Args:
        path: a folder with config.json, `*.pth` and `tokenizer/`, or a zip that holds such files
            at its top or in one folder.
        weights: name of the weights file; by default the first of `PREFERENCE` that exists, or
            the only `.pth`.

    Raises:
        CheckpointError: missing or corrupt, or a zip whose names lead outside of it; the message
            names the file.
    """
    source = os.fspath(path)
    try:
        if os.path.isdir(source):
            return _read(_folder_files(pathlib.Path(source)), weights, source)
        with zipfile.ZipFile(source) as archive:
            return _read(_zip_files(archive), weights, source)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    except FileNotFoundError:
        raise CheckpointError(absent(source, "a checkpoint of the reference")) from None
    except FOREIGN as error:
        raise CheckpointError(f"{source}: cannot be read as a folder or zip: {error!r}") from error


# Names relative to config.json, and what reads each file, small unless more bytes are allowed.
_Files = Mapping[str, Callable[..., bytes]]


def _read(files: _Files, weights: str | None, source: str) -> ReferenceCheckpoint:
    if "config.json" not in files:
        raise CheckpointError("config.json: missing")
    config = _json(files, "config.json")
    names = sorted(name for name in files if name.endswith(".pth") and "/" not in name)
    if weights is not None and weights not in names:
        raise CheckpointError(f"{weights}: missing; found {names}")
    preferred = [name for name in (weights, *PREFERENCE) if name in names]
    if not preferred and len(names) != 1:
        raise CheckpointError(f"expected one of {', '.join(PREFERENCE)}; found {names}")
    weights = (preferred or names)[0]
    state_dict = load_torch_file(io.BytesIO(files[weights](MAX_FILE_BYTES)), name=weights)
    matches = (re.fullmatch(r"tokenizer/([^/]+)", name) for name in sorted(files))
    tokenizer = {match[1]: files[match[0]]() for match in matches if match}
    scores: dict[str, dict[str, Any]] = {}
    for match in itertools.islice(filter(None, map(_SCORES.fullmatch, sorted(files))), 1000):
        scores.setdefault(match[1], {})[match[2]] = _json(files, match[0], _MAX_SCORES)
    return ReferenceCheckpoint(source, config, weights, state_dict, tokenizer, scores)


def _json(files: _Files, name: str, *limit: int) -> dict[str, Any]:
    with foreign_errors(f"{name}: not JSON", CheckpointError):
        content = json.loads(files[name](*limit).decode("utf-8-sig"), object_pairs_hook=unique_keys)
    if not isinstance(content, dict):
        raise CheckpointError(f"{name}: expected a JSON object")
    return content


def _folder_files(root: pathlib.Path) -> _Files:
    """Files of a folder and of the folders directly in it."""
    paths = [path for pattern in ("*", "*/*") for path in root.glob(pattern) if path.is_file()]
    return {
        path.relative_to(root).as_posix(): functools.partial(_read_file, path) for path in paths
    }


def _read_file(path: pathlib.Path, max_bytes: int = SMALL_BYTES) -> bytes:
    try:
        return read_bytes(path, max_bytes=max_bytes)
    except DataError as error:
        raise CheckpointError(str(error)) from error


def _zip_files(archive: zipfile.ZipFile) -> _Files:
    """Files of a zip in the folder of its only config.json, and in folders there."""
    members = [(info.filename, info) for info in archive.infolist() if not info.is_dir()]
    names = [name for name, _ in members]
    for name in names:
        if not name.isprintable():
            raise CheckpointError(f"{name!r:.200}: not a name of a file")
        if "\\" in name or ":" in name or {"", ".", ".."} & set(name.split("/")):
            raise CheckpointError(f"{name!r}: leads outside of the zip")
    configs = [name for name in names if re.fullmatch(r"([^/]*/)?config\.json", name)]
    if len(configs) != 1:
        raise CheckpointError(f"expected config.json in one folder; found {len(configs)}")
    root = configs[0].removesuffix("config.json")
    return {
        name.removeprefix(root): functools.partial(_read_member, archive, info)
        for name, info in members
        if name.startswith(root)
    }


def _read_member(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, max_bytes: int = SMALL_BYTES
) -> bytes:
    if info.file_size > max_bytes:
        claim = f"claims {info.file_size} bytes; expected at most {max_bytes}"
        raise CheckpointError(f"{info.filename}: {claim}")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise CheckpointError(f"{info.filename}: compressed in another way than zip files are")
    with foreign_errors(f"{info.filename}: corrupt", CheckpointError):
        return archive.read(info)
