"""Console command `sparsecap`, which runs the scripts of `launch/` from an installed package.

A wheel holds `launch/` and `configs/` inside the package; in a checkout they lie next to it.
"""

import ast
import pathlib
import runpy
import sys
from collections.abc import Mapping

from sparsecap_jax.settings import nearest
from sparsecap_jax.version import __version__

_PACKAGE = pathlib.Path(__file__).parents[1]


def folder(name: str) -> pathlib.Path:
    """Return the path of `launch` or `configs`, in a wheel or in a checkout."""
    installed = _PACKAGE / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def scripts(directory: pathlib.Path) -> dict[str, pathlib.Path]:
    """Return the scripts of a folder by name."""
    return {path.stem: path for path in sorted(directory.glob("[!_]*.py"))}


def summaries(paths: Mapping[str, pathlib.Path]) -> str:
    """Return a line for each script: its name, and the first line of its docstring."""
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in paths.items()}
    texts = {name: ast.get_docstring(tree) or " " for name, tree in trees.items()}
    return "\n".join(f"  {name:15s} {text.splitlines()[0]}" for name, text in texts.items())


def main() -> None:
    """Run `sparsecap COMMAND ...`, the same as `python launch/COMMAND.py ...`."""
    commands = scripts(folder("launch"))
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h", "help"):
        print("sparsecap COMMAND ...; sparsecap COMMAND --help says more\n")
        print(summaries(commands))
        return
    if name == "--version":
        print(f"sparsecap {__version__}")
        return
    if name not in commands:
        sys.exit(f"error: no command {name!r}; {nearest(name, commands)}")
    sys.argv = [f"sparsecap {name}", *map(with_config, sys.argv[2:])]
    runpy.run_path(str(commands[name]), run_name="__main__")


def with_config(argument: str) -> str:
    """Point `configs/NAME.py` at the package unless the working folder has that file."""
    place, colon, rest = argument.partition(":")
    flag = "--config=" if place.startswith("--config=") else ""
    path, words = place.removeprefix(flag), colon + rest
    recipe = folder("configs") / pathlib.PurePath(path).name
    if path.startswith("configs/") and recipe.exists() and not pathlib.Path(path).exists():
        return f"{flag}{recipe}{words}"
    return argument
