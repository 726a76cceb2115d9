r"""The Object Relation Transformer (Herdade et al. 2019), dense or pruned.

    sparsecap train --config=configs/ort.py --config.data.dir=DIR --workdir=runs/ort
    sparsecap train --config=configs/ort.py:supermask,sparsity=0.95 --config.data.dir=DIR \
        --workdir=runs/ort_95
    sparsecap train --config=configs/ort.py:tiny,supermask --workdir=runs/ort_tiny

Boxes are needed (docs/data.md). Words: `small` (256/1024) and `xsmall` (104/416), the small dense
models that ACORT is compared with; `tiny` (toy scenes) and the names of pruners; `key=value` sets
fields of the pruner.
`scst` continues with self-critical training from `--config.train.init_from=RUN` (docs/scst.md).
"""

from ml_collections import ConfigDict

from sparsecap_jax.runs.recipes import NOAM, TINY_TRANSFORMER, make_config


def get_config(arg: str = "") -> ConfigDict:
    """Build the config; `arg` holds the words and values above."""
    return make_config(
        arg,
        "relation_transformer",
        fields={"d_model": 512, "ff_size": 2048, "num_layers": 6, "num_heads": 8},
        pruned={"source_dropout": 0.1, "dropout": 0.1 / 3},
        tiny=TINY_TRANSFORMER,
        optimizer=NOAM,
        weight_scale=1.5,
        variants={
            "small": {"d_model": 256, "ff_size": 1024},
            "xsmall": {"d_model": 104, "ff_size": 416},
        },
    )
