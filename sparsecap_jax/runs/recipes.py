"""Recipes of the papers, from which `configs/*.py` are made.

A config's argument is a list of words and values: `tiny` shrinks the model to the toy scenes, a
pruner's name chooses it (`dense`, the default, none), and `key=value` sets a field of that pruner:
`configs/ort.py:tiny,supermask,sparsity=0.975`. `scst` continues with self-critical training from
`config.train.init_from`; fields of the section `scst` may follow:
`configs/ort.py:scst,mask_freeze,num_samples=60,baseline=greedy`.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning import PRUNERS, pruner_fields
from sparsecap_jax.pruning.movement import Movement
from sparsecap_jax.pruning.structures import NofM, parse_structure
from sparsecap_jax.runs.config import default_config, make_section, parse_arg, section_fields
from sparsecap_jax.settings import nearest

# Cosine from 0.01 with a large epsilon: Up-Down and Soft-Attention.
RECURRENT = {"learning_rate": 1e-2, "learning_rate_min": 1e-5, "epsilon": 1e-2}
# Noam with Adam 0.9 / 0.98 / 1e-9: transformers.
NOAM = {"schedule": "noam", "noam_factor": 1.0, "noam_warmup": 10000, "beta": 0.98, "epsilon": 1e-9}
TINY_UP_DOWN = {"embed_size": 128, "rnn_size": 128, "attention_size": 64, "dropout": 0.0}
TINY_TRANSFORMER = {
    **{"d_model": 128, "ff_size": 256, "num_layers": 2, "num_heads": 4},
    **{"source_dropout": 0.1, "dropout": 0.1},
}
# Toy scenes take one or two thousand small steps, a hundredth of a run on COCO. Mask logits move by
# (gradient / epsilon) per step, so epsilon shrinks along, and the heavier sparsity loss has them
# arrive before the last half of training: the rest is for the weights to recover.
TINY = {
    **{"learning_rate": 3e-3, "learning_rate_min": 1e-4, "epsilon": 1e-8, "beta": 0.999},
    **{"clip": "norm", "clip_at": 1.0, "mask_epsilon": 3e-4},
}
TINY_SUPERMASK = {"sparsity_weight": 25.0}
# Self-critical training: Adam 0.9 / 0.999 at a constant rate, for transformers too.
SCST_OPTIMIZER = {"learning_rate": 5e-5, "schedule": "constant", "beta": 0.999, "epsilon": 1e-8}
TINY_SCST_OPTIMIZER = {**SCST_OPTIMIZER, "learning_rate": 1e-3, "clip": "norm", "clip_at": 1.0}


def make_config(
    arg: str,
    model: str,
    *,
    fields: Mapping[str, Any],
    pruned: Mapping[str, Any],
    tiny: Mapping[str, Any],
    optimizer: Mapping[str, Any],
    weight_scale: float,
    tokenizer: Mapping[str, Any] | None = None,
    variants: Mapping[str, Mapping[str, Any]] | None = None,
) -> ConfigDict:
    """Return a paper's recipe for one model, dense or with any pruner.

    Args:
        arg: the config's argument, see above.
        model: name of the model.
        fields: the model's fields in the paper.
        pruned: fields that change where a pruner is chosen.
        tiny: fields that change under `tiny`.
        optimizer: fields of the optimizer in the paper.
        weight_scale: of the supermask's sparsity loss, 0.5 for recurrent models, else 1.5.
        tokenizer: fields of the tokenizer, where it is not a word tokenizer.
        variants: further words, and the model's fields that they change.

    Raises:
        ConfigError: an unknown word, two pruners, or a value for no pruner.
    """
    words, values = parse_arg(arg)
    small, rewarded = "tiny" in words, "scst" in words
    variants = {"tiny": tiny, "scst": {}, **(variants or {})}
    known = section_fields("scst") if rewarded else {}
    scst = {key: values.pop(key) for key in list(values) if key in known}
    pruner = _pruner(arg, [word for word in words if word not in variants], values, variants)
    chosen = {**fields, **(pruned if pruner != "none" else {})}
    for word in words:
        chosen |= variants.get(word, {})
    if pruner == "supermask":
        usual = {"weight_scale": weight_scale, **(TINY_SUPERMASK if small else {})}
        values = {**usual, **values}
    if pruner_fields(pruner)["sparsity"]:  # else it has no target
        values = {"sparsity": _usual_sparsity(values), **values}
    tokens = dict(tokenizer or {"name": "word"})
    config = default_config(model, pruner, tokens["name"])
    with config.unlocked():
        config.model = make_section("model", model, **chosen)
        config.pruner = make_section("pruner", pruner, **values)
        config.optimizer = make_section("optimizer", **(TINY if small else optimizer))
        config.tokenizer = make_section("tokenizer", tokens.pop("name"), **tokens)
    if pruner in ("mag_blind", "mag_uniform", "mag_dist"):
        config.train.epochs = 10  # for a trained model (`config.train.init_from`)
    if small:
        use_toy_scenes(config)
    if rewarded:
        use_rewards(config, small, scst)
    if pruner in ("movement", "soft_movement"):
        rate, epsilon = Movement.mask_optimizer
        config.optimizer.update(mask_learning_rate=rate, mask_epsilon=epsilon)
    return config


def use_rewards(config: ConfigDict, small: bool, fields: Mapping[str, Any]) -> None:
    """Train by self-critical rewards from the start, on the weights in `config.train.init_from`."""
    small_fields = {"length_buckets": 1} if small else {}
    with config.unlocked():
        optimizer = TINY_SCST_OPTIMIZER if small else SCST_OPTIMIZER
        config.optimizer = make_section("optimizer", **optimizer)
        config.scst = make_section("scst", **{"start_epoch": 0, **small_fields, **fields})
    config.data.seq_per_img = 1  # captions serve as references, not to be predicted
    if small:
        # The best captions get worse at first, for samples are rewarded: they need 450 steps.
        config.train.update(steps=450, eval_every=75, log_every=15, steps_per_call=5)
    else:
        config.data.batch_size = 5
        config.train.epochs = 10


def use_toy_scenes(config: ConfigDict) -> None:
    """Train on the embedded scenes with small steps: 1,500, or 2,100 with a pruner.

    A pruned model has the longer run because its first third is spent on finding the masks.
    """
    pruned = config.pruner.name != "none"
    config.data.update(name="toy", region_buckets=(20,), batch_size=16)
    config.train.update(steps=2100 if pruned else 1500, steps_per_call=10)
    config.train.update(eval_every=700, log_every=50)
    config.eval.images = 100  # of 200
    config.tokenizer.vocab_size = 1000  # more than there are words: all are kept


def _usual_sparsity(values: Mapping) -> float:
    """Return the papers' 95 %, or the sparsity of an N:M structure."""
    structure = parse_structure(values.get("sparsity_type", "unstructured"), -1)
    return 1.0 - structure.n / structure.m if isinstance(structure, NofM) else 0.95


def _pruner(arg: str, names: list[str], values: Mapping, variants: Mapping) -> str:
    names = ["none" if name == "dense" else name for name in names]
    for name in names:
        if name not in PRUNERS:
            hint = nearest(name, [*variants, *PRUNERS])
            raise ConfigError(f"config argument {arg!r}: {name!r} is no word of it; {hint}")
    if len(names) > 1:
        raise ConfigError(f"config argument {arg!r}: more than one pruner: {', '.join(names)}")
    if not names and values:
        raise ConfigError(f"config argument {arg!r}: {', '.join(values)} without a pruner")
    return names[0] if names else "none"
