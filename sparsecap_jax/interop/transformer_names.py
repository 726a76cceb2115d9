"""Names and config keys of the reference's `transformer` and `relation_transformer`.

The pruned `relation_transformer_prune` has the same tensors, beside their masks; it takes no
notice of the sharing options, so its state dicts never share.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sparsecap_jax.interop.rules import Rule
from sparsecap_jax.models.attention import sinusoids

# Our projections in the order of the reference's list of linears, by sharing.
PROJECTIONS = {
    "": ("query", "key", "value", "out"),
    "kv": ("query", "key", "out"),
    "qk": ("query", "value", "out"),
}
NORMS = {
    "encoder": ("self_attn_norm", "feed_forward_norm"),
    "decoder": ("self_attn_norm", "cross_attn_norm", "feed_forward_norm"),
}
ATTENTIONS = {
    "encoder": (("self_attn", "self_attn"),),
    "decoder": (("self_attn", "self_attn"), ("src_attn", "cross_attn")),
}
BUFFER_LENGTH = 5000


# Our fields -> the reference's keys, newest form; dropout inside of the layers has no key.
KEYS = {
    "vocab_size": "vocab_size",
    "feature_size": "att_feat_size",
    "d_model": "d_model",
    "ff_size": "dim_feedforward",
    "num_layers": "num_layers",
    "num_heads": "num_heads",
    "source_dropout": "drop_prob_src",
    "max_seq_length": "max_seq_length",
}
SIDES = ("encoder", "decoder")


def model_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of our `Transformer` or `RelationTransformer` from a config of the newest form.

    The reference has no option for the dropout inside of the layers: 0.1, and a third of it in the
    pruned model.
    """
    fields = {ours: config[theirs] for ours, theirs in KEYS.items()}
    fields["dropout"] = 0.1 / 3 if _pruned(config) else 0.1
    for side in SIDES:
        fields[f"share_attention_{side}"] = _shared_attention(config, side)
        fields[f"share_layer_{side}"] = _shared_layers(config, side)
    if _relation(config):
        plain = config.get("no_box_trigonometric_embedding", False)
        fields["box_embedding"] = "plain" if plain else "trig"
    return fields


def config_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The reference's config keys for fields of our model; undoes `model_fields`."""
    keys = {theirs: fields[ours] for ours, theirs in KEYS.items()}
    for side in SIDES:
        keys[f"share_att_{side}"] = fields[f"share_attention_{side}"] or None
        keys[f"share_layer_{side}"] = list(fields[f"share_layer_{side}"]) or None
    if "box_embedding" in fields:
        keys["no_box_trigonometric_embedding"] = fields["box_embedding"] == "plain"
    return keys


def has_pruned_class(fields: Mapping[str, Any]) -> bool:
    """Whether the reference has a class with masks for such a model: ORT without sharing."""
    shared = (fields[f"share_{part}_{side}"] for part in ("attention", "layer") for side in SIDES)
    return "box_embedding" in fields and not any(shared)


def rules(config: Mapping[str, Any]) -> list[Rule]:
    """Every tensor of the model; shared layers occur once for each application."""
    root = _root(config)
    embed = "att_embed.0" if _relation(config) else f"{root}.src_embed.0"
    found = _linear(embed, ("src_embed",))
    for side in SIDES:
        order = _shared_layers(config, side) or range(config["num_layers"])
        for position, layer in enumerate(order):
            name, path = f"{root}.{side}.layers.{position}", f"{side}_layers_{layer}"
            found += _layer(name, path, side, config)
        found += _norm(f"{root}.{side}.norm", (f"{side}_norm",))
    found.append(Rule(f"{root}.tgt_embed.0.lut.weight", ("tgt_embed", "embedding"), "same"))
    return found + _linear(f"{root}.generator.proj", ("logits",))


def buffers(config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What the reference's state dict holds beside its parameters: the table of positions."""
    table = sinusoids(BUFFER_LENGTH, config["d_model"])
    return {f"{_root(config)}.tgt_embed.1.pe": table[None]}


def _layer(name: str, path: str, side: str, config: Mapping[str, Any]) -> list[Rule]:
    found = []
    for theirs, ours in ATTENTIONS[side]:
        for i, projection in enumerate(PROJECTIONS[_shared_attention(config, side)]):
            found += _linear(f"{name}.{theirs}.linears.{i}", (path, ours, projection))
    if side == "encoder" and _relation(config):
        for i in range(config["num_heads"]):
            found += _linear(f"{name}.self_attn.WGs.{i}", (path, "geometry", f"head_{i}"))
    for part in ("w_1", "w_2"):
        found += _linear(f"{name}.feed_forward.{part}", (path, "feed_forward", part))
    for i, norm in enumerate(NORMS[side]):
        found += _norm(f"{name}.sublayer.{i}.norm", (path, norm))
    return found


def _linear(name: str, path: tuple[str, ...]) -> list[Rule]:
    return [
        Rule(f"{name}.weight", (*path, "kernel"), "linear"),
        Rule(f"{name}.bias", (*path, "bias"), "same"),
    ]


def _norm(name: str, path: tuple[str, ...]) -> list[Rule]:
    return [
        Rule(f"{name}.a_2", (*path, "scale"), "same"),
        Rule(f"{name}.b_2", (*path, "bias"), "same"),
    ]


def _relation(config: Mapping[str, Any]) -> bool:
    return config["caption_model"].startswith("relation_transformer")


def _pruned(config: Mapping[str, Any]) -> bool:
    return config["caption_model"].endswith("_prune")


def _root(config: Mapping[str, Any]) -> str:
    return "model" if _relation(config) else "core"


def _shared_attention(config: Mapping[str, Any], side: str) -> str:
    return "" if _pruned(config) else config.get(f"share_att_{side}") or ""


def _shared_layers(config: Mapping[str, Any], side: str) -> tuple[int, ...]:
    return () if _pruned(config) else tuple(config.get(f"share_layer_{side}") or ())
