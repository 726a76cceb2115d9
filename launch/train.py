"""Train a captioner, dense or pruned; run the same command again to continue.

python launch/train.py --config=configs/toy.py:supermask --workdir=runs/toy_supermask
"""

from absl import app, flags
from ml_collections import config_flags

from sparsecap_jax.commands.cli import config_value, run_main

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, as FILE.py:ARGUMENTS.")
WORKDIR = flags.DEFINE_string("workdir", None, "Run directory; a new one, or one to continue.")


def main(argv: list[str]) -> None:
    """Parse flags and train."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    from sparsecap_jax.runs.loop import train

    train(config_value(CONFIG), WORKDIR.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    run_main(main)
