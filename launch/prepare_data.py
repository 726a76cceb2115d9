"""Prepare captions and features: `python launch/prepare_data.py SUBCOMMAND --help`."""

from sparsecap_jax.commands.cli import run_main
from sparsecap_jax.commands.prepare import parse_args

if __name__ == "__main__":
    run_main(lambda args: args.run(args), parse=parse_args)
