"""Captioners that come with the package: run directories below this folder, by name."""

import os
import pathlib

from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.files import absent

_FOLDER = pathlib.Path(__file__).parent


def names() -> list[str]:
    """Return the names of the captioners that come with the package."""
    return sorted(path.parent.name for path in _FOLDER.glob("*/config.json"))


def find(name: str) -> pathlib.Path:
    """Return the run directory of a captioner; a CheckpointError where there is none."""
    if name not in names():
        known = ", ".join(names())
        raise CheckpointError(absent(name, f"a run, or a captioner of the package ({known})"))
    return _FOLDER / name


def resolve_run(run: str | os.PathLike) -> pathlib.Path:
    """Return the folder or file of a run: what exists, or a path, as it is, else by its name.

    Raises:
        CheckpointError: a name without folders in it is neither.
    """
    path = pathlib.Path(run)
    is_name = isinstance(run, str) and path.name == run and not path.exists()
    return find(path.name) if is_name else path


def results_folder(run: str | pathlib.Path, name: str) -> pathlib.Path:
    """Return the folder for results of a run: `RUN/name`, or `RUN_name` outside the package.

    Results of a model file lie next to it in the same way.
    """
    directory = resolve_run(run)
    within = directory == pathlib.Path(run) and not directory.is_file()
    return directory / name if within else pathlib.Path(f"{run}_{name}")
