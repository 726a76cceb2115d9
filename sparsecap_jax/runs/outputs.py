"""Runs written whole: as one model file, or as a run directory that appears at once."""

import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from sparsecap_jax.errors import CheckpointError, ConfigError
from sparsecap_jax.files import new_folder, unused, write_json
from sparsecap_jax.locks import locked
from sparsecap_jax.model_files import FORMS
from sparsecap_jax.runs.directory import LoadedRun, save_model, save_run
from sparsecap_jax.runs.finished import CONFIG, IMPORTED, MODEL_SUFFIX, finished_weights


def check_output(path: str | pathlib.Path, overwrite: bool = False) -> pathlib.Path:
    """Return the path of a run to write.

    Args:
        path: a model file if it ends with `.scap`, else a run directory.
        overwrite: whether a model file, or a run directory without checkpoints, may be replaced.

    Raises:
        CheckpointError: it is in use.
    """
    path = pathlib.Path(path)
    if not overwrite:
        return unused(path, MODEL_SUFFIX)
    is_file = path.suffix == MODEL_SUFFIX and path.is_file()
    is_run = path.is_dir() and (path / CONFIG).is_file() and finished_weights(path) is not None
    if is_file or (is_run and not (path / "checkpoints").exists()):
        return path
    try:
        return unused(path, MODEL_SUFFIX)
    except CheckpointError as error:
        replaceable = "a model file, or a run directory without checkpoints, to replace"
        raise CheckpointError(f"{error}, {replaceable}") from error


def write_run(
    output: pathlib.Path,
    run: LoadedRun,
    weights: str = "float32",
    imported: Mapping[str, Any] | None = None,
) -> int:
    """Write a run as a model file or a directory, in place of what is there.

    Args:
        output: from `check_output`.
        run: what to write.
        weights: form of the weights, see `runs.directory.save_finished`; a model file has
            "float32", "float16" or "int8".
        imported: content of a directory's `imported.json`.

    Returns:
        Bytes of the file with the weights.

    Raises:
        ConfigError: another form than a model file has.
    """
    if output.suffix == MODEL_SUFFIX:
        if weights not in FORMS:
            raise ConfigError(f"weights is {weights!r}; {output} can be one of {', '.join(FORMS)}")
        return save_model(output, run, weights)
    with locked(output, folder=False), new_folder(output) as folder:
        size = save_run(folder, run, form=weights)
        if imported is not None:
            write_json(folder / IMPORTED, imported)
        if output.exists():
            shutil.rmtree(output)
    return size
