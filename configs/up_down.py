r"""Up-Down (Anderson et al. 2018) as pruned in "End-to-End Supermask Pruning".

    sparsecap train --config=configs/up_down.py --config.data.dir=DIR \
        --workdir=runs/up_down_dense
    sparsecap train --config=configs/up_down.py:supermask,sparsity=0.975 \
        --config.data.dir=DIR --workdir=runs/up_down_975
    sparsecap train --config=configs/up_down.py:tiny,supermask --workdir=runs/up_down_tiny

DIR holds the Karpathy split and features, see docs/data.md. Words: `tiny` (toy scenes, minutes on
a CPU) and the names of pruners; `key=value` sets fields of the pruner.
`scst` continues with self-critical training from `--config.train.init_from=RUN` (docs/scst.md).
"""

from ml_collections import ConfigDict

from sparsecap_jax.runs.recipes import RECURRENT, TINY_UP_DOWN, make_config


def get_config(arg: str = "") -> ConfigDict:
    """Build the config; `arg` holds the words and values above."""
    return make_config(
        arg,
        "up_down",
        fields={"embed_size": 1000, "rnn_size": 1000, "attention_size": 512, "dropout": 0.5},
        pruned={"dropout": 0.1},
        tiny=TINY_UP_DOWN,
        optimizer=RECURRENT,
        weight_scale=0.5,
    )
