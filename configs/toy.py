"""A small Up-Down captioner on the embedded toy scenes; about two minutes on two CPU cores.

    python launch/train.py --config=configs/toy.py --workdir=runs/toy_dense
    python launch/train.py --config=configs/toy.py:supermask --workdir=runs/toy_supermask
    python launch/train.py --config=configs/toy.py:supermask,sparsity=0.975 --workdir=runs/toy_975

Any field can be overridden: `--config.train.epochs=3`, `--config.model.rnn_size=64`.
"""

from ml_collections import ConfigDict

from sparsecap_jax.config import (
    config_from_arg,
    default_config,
    model_section,
    optimizer_section,
    pruner_section,
)


def get_config(arg: str = "") -> ConfigDict:
    """Build the config.

    Args:
        arg: "" for a dense model, or a pruner and its fields: `supermask,sparsity=0.9`.
    """
    pruner, fields = config_from_arg(arg)
    config = default_config(pruner=pruner or "none")
    with config.unlocked():
        config.model = model_section(
            "up_down", embed_size=128, rnn_size=256, attention_size=96, dropout=0.1
        )
        if pruner:
            config.pruner = pruner_section(pruner, **{"sparsity": 0.95, **fields})
        config.optimizer = optimizer_section(learning_rate=1e-2, epsilon=1e-2)
    config.data.name = "toy"
    config.data.region_buckets = (20,)
    config.data.batch_size = 25
    config.train.epochs = 12
    config.train.steps_per_call = 5
    config.train.eval_every = 240
    config.tokenizer.vocab_size = 1000  # more than there are words: all are kept
    return config
