"""A dataset of a few scenes and a config that trains on it in seconds; shared by the loop's tests.

Run as a script it trains: `python tiny_runs.py DATA WORKDIR [key=value...]`.
"""

import os
import re
import sys

from sparsecap_jax.data.toy_scenes import make_toy_scenes
from sparsecap_jax.runs.config import (
    default_config,
    model_section,
    optimizer_section,
    pruner_section,
)

SIZES = (32, 6, 6)
STEPS = 12


def xla_flags(devices):
    """The suite's flags of XLA, with another number of fake devices."""
    return re.sub(r"(device_count)=\d+", rf"\1={devices}", os.environ["XLA_FLAGS"])


def make_data(directory):
    return make_toy_scenes(directory, sizes=SIZES)


def tiny_config(directory, pruner="supermask", **train):
    """Twelve steps of a small Up-Down; validation and a checkpoint every four."""
    config = default_config(pruner=pruner)
    sizes = {"embed_size": 12, "rnn_size": 16, "attention_size": 10, "dropout": 0.1}
    with config.unlocked():
        config.model = model_section("up_down", **sizes)
        if pruner != "none":
            config.pruner = pruner_section(pruner, sparsity=0.5)
        config.optimizer = optimizer_section(learning_rate=3e-3)
    config.data.dir = str(directory)
    config.data.region_buckets = (20,)
    config.data.batch_size = 8
    config.data.seq_per_img = 2
    config.data.eval_batch_size = 6
    config.train.update({"steps": STEPS, "eval_every": 4, "log_every": 2, "devices": 1, **train})
    return config


def constant_config(directory, pruner="none", **train):
    """The same at a constant rate: steps that do not depend on their number are compiled once."""
    config = tiny_config(directory, pruner, **train)
    config.optimizer.schedule = "constant"
    return config


def get_config(directory):
    """The config as a file's, for `launch/train.py --config=tests/tiny_runs.py:DATA`."""
    return tiny_config(directory, devices=0)


def main(data, workdir, *overrides):
    from sparsecap_jax.runs.loop import train
    from sparsecap_jax.stopping import on_signals

    values = dict(item.split("=") for item in overrides)
    config = tiny_config(data, **{key: int(value) for key, value in values.items()})
    with on_signals():
        train(config, workdir, lambda line: print(line, flush=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
