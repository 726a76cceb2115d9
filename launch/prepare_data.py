"""Prepare captions and features: `sparsecap prepare_data SUBCOMMAND --help`."""

from sparsecap_jax.commands import prepare
from sparsecap_jax.commands.cli import run_main

if __name__ == "__main__":
    run_main(prepare.main, words=True, define=prepare.define)
