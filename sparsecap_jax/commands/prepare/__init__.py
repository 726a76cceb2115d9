"""Subcommands of `sparsecap prepare_data`, one module each.

A module `NAME.py` has `define()`, which defines its flags, and `run(args)`, which reads them as
attributes and raises a `SparsecapError` where it fails; --help prints its docstring. Only the
module of the subcommand is imported.
"""

import importlib
import pathlib
import sys
from collections.abc import Sequence

from absl import app, flags

from sparsecap_jax.commands.console import scripts, summaries
from sparsecap_jax.settings import nearest, use_plugin

COMMANDS = scripts(pathlib.Path(__file__).parent)


def define(argv: Sequence[str]) -> None:
    """Define the flags of the subcommand of a command line; --help explains it, or lists all."""
    words = [word for word in argv[1:] if not word.startswith("-")]
    name = next((word for word in words if word in COMMANDS), None)
    script = sys.modules["__main__"]
    if name:
        module = importlib.import_module(f"{__name__}.{name}")
        script.__doc__ = module.__doc__
        module.define()
    elif words:
        sys.exit(f"error: no subcommand {words[0]!r}; {nearest(words[0], COMMANDS)}")
    else:
        script.__doc__ = f"{script.__doc__}\n\n{summaries(COMMANDS)}"


def main(words: Sequence[str]) -> None:
    """Run the subcommand that `words` consists of."""
    if len(words) != 1:
        raise app.UsageError(f"expected one subcommand, found {' '.join(words) or 'none'}")
    importlib.import_module(f"{__name__}.{words[0]}").run(flags.FLAGS)


def trust_entry(name: str) -> None:
    """Import the module of an entry `MODULE:NAME`, for which the command line vouches."""
    module, colon, _ = name.partition(":")
    if colon:
        use_plugin(module)
