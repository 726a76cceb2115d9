"""Captioners that come with the package: run directories below this folder, by name."""

import pathlib

from sparsecap_jax.errors import CheckpointError

_FOLDER = pathlib.Path(__file__).parent


def names() -> list[str]:
    """Names of the captioners that are here."""
    return sorted(path.parent.name for path in _FOLDER.glob("*/config.json"))


def find(name: str) -> pathlib.Path:
    """Return the run directory of a captioner.

    Raises:
        CheckpointError: there is none of that name.
    """
    if name not in names():
        known = ", ".join(names())
        raise CheckpointError(f"{name}: neither a folder nor a captioner of the package ({known})")
    return _FOLDER / name
