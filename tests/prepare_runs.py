"""Subcommands of `launch/prepare_data.py`, run in the process of the tests."""

import sys
from unittest import mock

from absl import flags

from sparsecap_jax.commands import prepare


def run_prepare(*words):
    """Run a command line; its flags are gone afterwards, for the next one to define."""
    argv = ["prepare_data.py", *map(str, words)]
    others = set(flags.FLAGS)
    flags.FLAGS.set_gnu_getopt(True)
    try:
        with mock.patch.object(sys.modules["__main__"], "__doc__"):
            prepare.define(argv)
        prepare.main(flags.FLAGS(argv)[1:])
    finally:
        for name in set(flags.FLAGS) - others:
            delattr(flags.FLAGS, name)
