"""A small Up-Down captioner on the embedded toy scenes; about a minute on two CPU cores.

    sparsecap train --config=configs/toy.py --workdir=runs/toy_dense
    sparsecap train --config=configs/toy.py:supermask --workdir=runs/toy_supermask
    sparsecap train --config=configs/toy.py:supermask,sparsity=0.9 --workdir=runs/toy_90

Dense and pruned models train for 3,000 steps. Any field can be overridden:
`--config.train.steps=500`, `--config.model.rnn_size=64`. Other models train on the same scenes with
`configs/ort.py:tiny` and so on.
`configs/toy.py:scst` continues with self-critical training from `--config.train.init_from=RUN`
(docs/scst.md).
"""

from ml_collections import ConfigDict

from sparsecap_jax.runs.recipes import TINY_UP_DOWN, make_config

STEPS = 3000  # for dense and pruned models alike


def get_config(arg: str = "") -> ConfigDict:
    """Build the config.

    Args:
        arg: "" for a dense model, or a pruner and its fields: `supermask,sparsity=0.9`.
    """
    config = make_config(
        f"tiny,{arg}" if arg else "tiny",
        "up_down",
        fields={},
        pruned={},
        tiny=TINY_UP_DOWN,
        optimizer={},
        weight_scale=0.5,
    )
    if config.scst.start_epoch < 0:
        # Two of five captions in a step: a sparse model learns more from more, cheaper steps.
        config.data.seq_per_img = 2
        config.train.update(steps=STEPS, eval_every=1000)
    return config
