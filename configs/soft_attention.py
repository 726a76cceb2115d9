r"""Soft-Attention (Xu et al. 2015) as pruned in "End-to-End Supermask Pruning".

    sparsecap train --config=configs/soft_attention.py:supermask,sparsity=0.975 \
        --config.data.dir=DIR --workdir=runs/soft_attention_975
    sparsecap train --config=configs/soft_attention.py:gru,tiny --workdir=runs/gru_tiny

Words: `gru` (instead of LSTM), `tiny` (toy scenes) and the names of pruners; `key=value` sets
fields of the pruner.
`scst` continues with self-critical training from `--config.train.init_from=RUN` (docs/scst.md).
"""

from ml_collections import ConfigDict

from sparsecap_jax.runs.recipes import RECURRENT, make_config


def get_config(arg: str = "") -> ConfigDict:
    """Build the config; `arg` holds the words and values above."""
    return make_config(
        arg,
        "soft_attention",
        fields={"embed_size": 256, "rnn_size": 512, "attention_size": 512},
        pruned={"dropout": 0.11, "attention_dropout": 0.03},
        tiny={"embed_size": 128, "rnn_size": 128, "attention_size": 64, "dropout": 0.0},
        optimizer=RECURRENT,
        weight_scale=0.5,
        variants={"gru": {"cell": "gru"}},
    )
