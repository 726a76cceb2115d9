"""Train a dense and a 95%-sparse captioner on the toy scenes and compare them.

sparsecap demo --workdir=runs/demo
"""

import pathlib

from absl import flags

from sparsecap_jax.commands.cli import run_main

WORKDIR = flags.DEFINE_string("workdir", "runs/demo", "Folder to write to.")
CONFIGS = pathlib.Path(__file__).parent.parent / "configs"


def main(words: list[str]) -> None:
    """Parse flags and run the demo."""
    from sparsecap_jax.experiments.demo import MODELS, run_demo
    from sparsecap_jax.runs.overrides import load_config

    configs = {name: load_config(CONFIGS / "toy.py", arg) for name, arg in MODELS.items()}
    run_demo(configs, WORKDIR.value)


if __name__ == "__main__":
    run_main(main)
