r"""ACORT: radix tokens, shared attention and shared layers (Tan et al. 2022).

    sparsecap train --config=configs/acort.py --config.data.dir=DIR --workdir=runs/acort
    sparsecap train --config=configs/acort.py:small_al --config.data.dir=DIR \
        --workdir=runs/acort_small_al
    sparsecap train --config=configs/acort.py:tiny --workdir=runs/acort_tiny

Boxes are needed (docs/data.md). Words: the base model's variants `base_al`, `small`, `small_al`
and `xsmall` (`_al`: one layer shared by all), `tiny` (toy scenes) and the names of pruners;
`key=value` sets fields of the pruner.
`scst` continues with self-critical training from `--config.train.init_from=RUN` (docs/scst.md).
"""

from ml_collections import ConfigDict

from sparsecap_jax.runs.recipes import NOAM, TINY_TRANSFORMER, make_config

TWO_LAYERS, ONE_LAYER = (0, 0, 0, 1, 1, 1), (0,) * 6
BASE, SMALL = {"d_model": 512, "ff_size": 2048}, {"d_model": 256, "ff_size": 1024}


def get_config(arg: str = "") -> ConfigDict:
    """Build the config; `arg` holds the words and values above."""
    config = make_config(
        arg,
        "relation_transformer",
        fields={
            **BASE,
            **_layers(TWO_LAYERS),
            "share_attention_encoder": "kv",
            "share_attention_decoder": "kv",
        },
        pruned={"source_dropout": 0.1, "dropout": 0.1 / 3},
        tiny={**TINY_TRANSFORMER, **_layers((0, 0))},
        optimizer=NOAM,
        weight_scale=1.5,
        tokenizer={"name": "radix", "radix_base": 768},
        variants={
            "base_al": _layers(ONE_LAYER),
            "small": SMALL,
            "small_al": {**SMALL, **_layers(ONE_LAYER)},
            "xsmall": {"d_model": 104, "ff_size": 416},
        },
    )
    config.max_seq_length = 26  # a word takes two tokens
    return config


def _layers(order: tuple[int, ...]) -> dict:
    """Which layer each application uses, in encoder and decoder."""
    return {"share_layer_encoder": order, "share_layer_decoder": order}
