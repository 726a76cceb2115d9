"""Names and config keys of the reference's `up_down_lstm` (its `models/att_model.py`)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sparsecap_jax.interop.rules import Rule

# Our fields -> the reference's keys, newest form.
KEYS = {
    "vocab_size": "vocab_size",
    "feature_size": "att_feat_size",
    "embed_size": "input_encoding_size",
    "rnn_size": "rnn_size",
    "attention_size": "att_hid_size",
    "logit_layers": "logit_layers",
    "dropout": "drop_prob_lm",
}


def model_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of our `UpDown` from a reference config of the newest form."""
    config = {"logit_layers": 1, **config}
    return {ours: config[theirs] for ours, theirs in KEYS.items()}


def config_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The reference's config keys for fields of our `UpDown`; undoes `model_fields`."""
    keys = {theirs: fields[ours] for ours, theirs in KEYS.items()}
    return {**keys, "fc_feat_size": fields["feature_size"]}


def has_pruned_class(fields: Mapping[str, Any]) -> bool:
    """Whether the reference has a class with masks for such a model."""
    return True


def rules(config: Mapping[str, Any]) -> list[Rule]:
    """Every tensor of `up_down_lstm`; the logit's name depends on its number of layers."""
    found = [Rule("embed.0.weight", ("embed", "embedding"), "same")]
    linears = {
        "fc_embed.0": ("fc_embed",),
        "att_embed.0": ("region_embed",),
        "ctx2att": ("ctx2att",),
        "core.attention.h2att": ("attention", "h2att"),
        "core.attention.alpha_net": ("attention", "alpha"),
    }
    layers = config.get("logit_layers", 1)
    for i in range(layers):
        # nn.Sequential counts the ReLU and the dropout between two linear layers.
        linears["logit" if layers == 1 else f"logit.{3 * i}"] = (f"logit_{i}",)
    for name, path in linears.items():
        found.append(Rule(f"{name}.weight", (*path, "kernel"), "linear"))
        found.append(Rule(f"{name}.bias", (*path, "bias"), "same"))
    for cell in ("att_lstm", "lang_lstm"):
        for part in ("ih", "hh"):
            found.append(Rule(f"core.{cell}.weight_{part}", (cell, f"kernel_{part}"), "linear"))
            found.append(Rule(f"core.{cell}.bias_{part}", (cell, f"bias_{part}"), "same"))
    return found


def buffers(config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What the reference's state dict holds beside its parameters: nothing."""
    return {}
