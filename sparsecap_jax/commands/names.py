"""Short names of paths that several commands take."""

import os
import pathlib
from collections.abc import Sequence


def distinct_names(paths: Sequence[str | pathlib.Path]) -> list[str]:
    """Return the parts of paths that follow the folder they share, `/` between them."""
    absolute = [os.path.abspath(path) for path in paths]
    folder = os.path.commonpath([os.path.dirname(path) for path in absolute])
    return [os.path.relpath(path, folder).replace(os.sep, "/") for path in absolute]
