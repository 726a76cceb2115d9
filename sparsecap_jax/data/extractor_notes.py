"""Settings that made features, noted beside them, and the check that a model gets such features."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from sparsecap_jax.errors import DataError
from sparsecap_jax.files import read_settings

EXTRACTOR = "extractor.json"
_OLDER = {"scale": 1.0}  # what notes mean that were written before the option existed
_FREE = {"half"}  # rounding, which every model stands


def noted_settings(path: str | os.PathLike) -> dict[str, Any]:
    """Return the `extractor.json` of a folder of features, {} where there is none.

    Raises:
        DataError: it is malformed.
    """
    file = pathlib.Path(path, EXTRACTOR)
    return read_settings(file) if os.fspath(path) and file.exists() else {}


def check_features(
    notes: Mapping[str, Any], path: str | os.PathLike, source: str = "the model was trained on"
) -> None:
    """Refuse features that other settings made than `notes`, the `extractor.json` of a model.

    Nothing is known of features or models without notes; they pass.

    Args:
        notes: of what was trained, or of other features that these are to join.
        path: folder of features.
        source: what the notes belong to, for the message.

    Raises:
        DataError: an option differs; the message names all that do.
    """
    if not notes or not (found := noted_settings(path)):
        return
    expected, found = {**_OLDER, **notes}, {**_OLDER, **found}
    names = [name for name in {**expected, **found} if name not in _FREE]
    other = [name for name in names if expected.get(name) != found.get(name)]
    if other:
        listed = " and ".join(f"{name} {found.get(name)!r:.40}" for name in other)
        wanted = " and ".join(f"{name} {expected.get(name)!r:.40}" for name in other)
        raise DataError(
            f"{pathlib.Path(path, EXTRACTOR)}: features of {listed}; {source} {wanted}; "
            "expected the same options of sparsecap prepare_data extract"
        )
