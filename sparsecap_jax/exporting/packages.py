"""jax2onnx, in a folder of its own: the package pins an Orbax older than ours, and does not use it.

The folder lies in the user's cache and is made when it is first needed. It holds the few packages
of `jax2onnx.txt`, without what they require; the rest is there already.
"""

import importlib
import importlib.metadata
import importlib.util
import logging
import os
import pathlib
import subprocess
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable
from types import ModuleType

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.settings import optional_package

_REQUIREMENTS = pathlib.Path(__file__).with_name("jax2onnx.txt")
_VERSION = "0.17."  # of jax2onnx, as in `jax2onnx.txt`
_TOO_NEW = 0, 12  # JAX, where it lacks what this jax2onnx takes from its private modules


def load_jax2onnx(report: Callable[[str], None] = print) -> ModuleType:
    """Return the module `jax2onnx`, installed first where it is missing or of another version.

    Args:
        report: takes one line where it is installed.

    Raises:
        ConfigError: the extra `onnx` is missing, JAX is too new, or pip cannot install it.
    """
    optional_package("onnx", "onnx", "export to ONNX")
    jax, bound = importlib.metadata.version("jax"), ".".join(map(str, _TOO_NEW))
    if tuple(map(int, jax.split(".")[:2])) >= _TOO_NEW:
        expected = f"expects one before {bound}, as requirements.txt has for Python 3.11"
        raise ConfigError(f"JAX is {jax}; jax2onnx {_VERSION}* {expected}")
    if importlib.util.find_spec("jax2onnx") is None:
        sys.path.append(str(_installed(report)))
    elif not importlib.metadata.version("jax2onnx").startswith(_VERSION):
        sys.path.insert(0, str(_installed(report)))
    importlib.invalidate_caches()
    # Parts of it are for libraries that are not there.
    logging.getLogger("jax2onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("jax2onnx")


def _installed(report: Callable[[str], None]) -> pathlib.Path:
    """Return the folder with the packages; make it if need be, whole or not at all."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    version = f"{zlib.crc32(_REQUIREMENTS.read_bytes()):08x}-{sys.implementation.cache_tag}"
    folder = cache / "sparsecap_jax" / f"jax2onnx-{version}"
    if folder.is_dir():
        return folder
    report(f"installing jax2onnx into {folder} (40 MB, once)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".jax2onnx.") as temporary:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
        command += ["--disable-pip-version-check", f"--requirement={_REQUIREMENTS}"]
        packages = pathlib.Path(temporary, "packages")
        done = subprocess.run([*command, f"--target={packages}"], capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
            expected = f"expected pip, or a jax2onnx {_VERSION}* that is installed"
            raise ConfigError(f"jax2onnx cannot be installed: {reason:.300}; {expected}")
        try:
            os.rename(packages, folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
    return folder
