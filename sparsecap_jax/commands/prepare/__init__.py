"""Subcommands of `launch/prepare_data.py`, one module each.

To add one: a module `NAME.py` with `define(parser)`, which adds its arguments, and `run(args)`,
which raises a `SparsecapError` where it fails; --help prints its docstring. Then a line in
`COMMANDS`. Only the module of the subcommand is imported.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from absl.flags import argparse_flags

COMMANDS = {
    "coco_captions": "lay out COCO's captions: splits, references, text to train tokenizers on",
    "coco_server": "write the two result files that COCO's evaluation server expects",
    "convert": "turn features of any known format into ArrayRecord",
    "df": "count the document frequencies of CIDEr-D rewards, or convert those of other codes",
    "extract": "region features of photos",
    "imagine": "a dataset of photos, and of captions with imagined features",
    "inspect": "print what feature files hold, and what is missing for a split",
    "tfds": "prepare captions and features as a tensorflow-datasets folder",
    "tokenizer": "train a tokenizer on a file of captions, or show what one does",
}


class _Parser(argparse_flags.ArgumentParser):
    """Full names only, and one line for an error."""

    def __init__(self, **options):
        super().__init__(
            **options, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    def error(self, message: str) -> NoReturn:
        print(f"error: {message} (see --help)", file=sys.stderr)
        sys.exit(1)


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line, program name included; `args.run(args)` then runs the subcommand.

    A faulty command line ends the process with one line on standard error and status 1.
    """
    parser = _Parser(prog="prepare_data.py", description="Prepare captions and features.")
    commands = parser.add_subparsers(metavar="SUBCOMMAND", required=True)
    chosen = next((word for word in argv[1:] if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, inherited_absl_flags=None)
        if name == chosen:
            module = importlib.import_module(f"{__name__}.{name}")
            command.description = module.__doc__
            module.define(command)
            command.set_defaults(run=module.run)
    # A flag of every command, which may stand anywhere; subparsers do not know it.
    plugins = [word for word in argv[1:] if word.startswith("--plugin=")]
    return parser.parse_args([*plugins, *(word for word in argv[1:] if word not in plugins)])
