"""Console command `sparsecap`, which runs the scripts of `launch/` from an installed package.

A wheel holds `launch/` and `configs/` inside the package; in a checkout they lie next to it.
"""

import ast
import pathlib
import runpy
import sys

_PACKAGE = pathlib.Path(__file__).parents[1]


def folder(name: str) -> pathlib.Path:
    """Return the path of `launch` or `configs`, in a wheel or in a checkout."""
    installed = _PACKAGE / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def commands() -> dict[str, pathlib.Path]:
    """Return the scripts by name."""
    return {path.stem: path for path in sorted(folder("launch").glob("*.py"))}


def main() -> None:
    """Run `sparsecap COMMAND ...`, the same as `python launch/COMMAND.py ...`."""
    scripts = commands()
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h", "help"):
        print("sparsecap COMMAND ...; sparsecap COMMAND --help says more\n")
        for name, path in scripts.items():
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or " "
            print(f"  {name:15s} {text.splitlines()[0]}")
        return
    if name not in scripts:
        print(f"error: no command {name!r}; expected one of {', '.join(scripts)}", file=sys.stderr)
        sys.exit(1)
    rest = sys.argv[2:]
    if "--config" in rest[:-1]:
        at = rest.index("--config")
        rest[at : at + 2] = [f"--config={rest[at + 1]}"]
    sys.argv = [f"sparsecap {name}", *map(_with_config, rest)]
    runpy.run_path(str(scripts[name]), run_name="__main__")


def _with_config(argument: str) -> str:
    """Point `--config=configs/NAME.py` at the package unless the working folder has that file."""
    flag, equals, value = argument.partition("=")
    path, colon, words = value.partition(":")
    if flag == "--config" and path.startswith("configs/") and not pathlib.Path(path).exists():
        recipe = folder("configs") / pathlib.PurePath(path).name
        if recipe.exists():
            return f"{flag}{equals}{recipe}{colon}{words}"
    return argument
