r"""The plain transformer captioner, the baseline of the Object Relation Transformer.

    sparsecap train --config=configs/transformer.py --config.data.dir=DIR \
        --workdir=runs/transformer
    sparsecap train --config=configs/transformer.py:tiny --workdir=runs/transformer_tiny

Words: `tiny` (toy scenes) and the names of pruners; `key=value` sets fields of the pruner.
`scst` continues with self-critical training from `--config.train.init_from=RUN` (docs/scst.md).
"""

from ml_collections import ConfigDict

from sparsecap_jax.runs.recipes import NOAM, TINY_TRANSFORMER, make_config


def get_config(arg: str = "") -> ConfigDict:
    """Build the config; `arg` holds the words and values above."""
    return make_config(
        arg,
        "transformer",
        fields={"d_model": 512, "ff_size": 2048, "num_layers": 6, "num_heads": 8},
        pruned={"source_dropout": 0.1, "dropout": 0.1 / 3},
        tiny=TINY_TRANSFORMER,
        optimizer=NOAM,
        weight_scale=1.5,
    )
