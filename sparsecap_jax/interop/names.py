"""Tensor names and config keys of the PyTorch reference's models, mapped to ours."""

import abc
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.formulas import sinusoids


class Rule(NamedTuple):
    """Correspondence between a tensor of the reference and a leaf of our params.

    Several reference names may share one path (layers shared by ACORT): their values are equal.

    Attributes:
        reference: name in the reference's state dict, such as `core.att_lstm.weight_ih`.
        path: path of the leaf in our params, such as `("att_lstm", "kernel_ih")`.
        transposed: whether the reference stores the matrix as `[out, in]`, and we as `[in, out]`.
    """

    reference: str
    path: tuple[str, ...]
    transposed: bool = False


def _linear(name: str, *path: str) -> list[Rule]:
    return [
        Rule(f"{name}.weight", (*path, "kernel"), transposed=True),
        Rule(f"{name}.bias", (*path, "bias")),
    ]


class Family(abc.ABC):
    """A model of ours and the reference's classes for it; configs are of the newest form.

    Attributes:
        model: our name of the model.
        keys: our fields, and the reference's keys for them.
    """

    model: str
    keys: ClassVar[dict[str, str]]

    def model_fields(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of our model for a config of the reference."""
        missing = [theirs for theirs in self.keys.values() if theirs not in config]
        if missing:
            raise ConfigError(f"reference config.json: {missing[0]} is missing")
        return {ours: config[theirs] for ours, theirs in self.keys.items()}

    def config_fields(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the reference's config keys for fields of our model; undoes `model_fields`."""
        return {theirs: fields[ours] for ours, theirs in self.keys.items()}

    @abc.abstractmethod
    def rules(self, config: Mapping[str, Any]) -> list[Rule]:
        """List every tensor of the reference's model."""

    def buffers(self, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return the entries of the reference's state dict that are no parameters."""
        return {}


class _UpDown(Family):
    """The reference's `up_down_lstm` (its `models/att_model.py`)."""

    model = "up_down"
    keys: ClassVar[dict[str, str]] = {
        "vocab_size": "vocab_size",
        "feature_size": "att_feat_size",
        "embed_size": "input_encoding_size",
        "rnn_size": "rnn_size",
        "attention_size": "att_hid_size",
        "logit_layers": "logit_layers",
        "dropout": "drop_prob_lm",
    }

    def model_fields(self, config):
        return super().model_fields({"logit_layers": 1, **config})  # older configs have one

    def config_fields(self, fields):
        return {**super().config_fields(fields), "fc_feat_size": fields["feature_size"]}

    def rules(self, config):
        rules = [Rule("embed.0.weight", ("embed", "embedding"))]
        rules += _linear("fc_embed.0", "fc_embed")
        rules += _linear("att_embed.0", "region_embed")
        rules += _linear("ctx2att", "ctx2att")
        rules += _linear("core.attention.h2att", "attention", "h2att")
        rules += _linear("core.attention.alpha_net", "attention", "alpha")
        layers = config.get("logit_layers", 1)
        for i in range(layers):
            # nn.Sequential counts the ReLU and the dropout between two linear layers.
            rules += _linear("logit" if layers == 1 else f"logit.{3 * i}", f"logit_{i}")
        for cell in ("att_lstm", "lang_lstm"):
            for part in ("ih", "hh"):
                name = f"core.{cell}.weight_{part}"
                rules.append(Rule(name, (cell, f"kernel_{part}"), transposed=True))
                rules.append(Rule(f"core.{cell}.bias_{part}", (cell, f"bias_{part}")))
        return rules


SIDES = ("encoder", "decoder")
# Our projections in the order of the reference's list of linears, by sharing.
_PROJECTIONS = {
    "": ("query", "key", "value", "out"),
    "kv": ("query", "key", "out"),
    "qk": ("query", "value", "out"),
}
_ATTENTIONS = {
    "encoder": (("self_attn", "self_attn"),),
    "decoder": (("self_attn", "self_attn"), ("src_attn", "cross_attn")),
}


class _Transformer(Family):
    """The reference's `transformer` and `relation_transformer`.

    The pruned `relation_transformer_prune` has the same tensors, and masks. It ignores the sharing
    options, so that its state dicts never share. The dropout inside of the layers has no key in
    configs: it is 0.1, and a third of that in the pruned model.
    """

    keys: ClassVar[dict[str, str]] = {
        "vocab_size": "vocab_size",
        "feature_size": "att_feat_size",
        "d_model": "d_model",
        "ff_size": "dim_feedforward",
        "num_layers": "num_layers",
        "num_heads": "num_heads",
        "source_dropout": "drop_prob_src",
        "max_seq_length": "max_seq_length",
    }

    def __init__(self, model: str):
        self.model = model
        self.relation = model == "relation_transformer"
        self.root = "model" if self.relation else "core"

    def model_fields(self, config):
        fields = super().model_fields(config)
        fields["dropout"] = 0.1 / 3 if config["caption_model"].endswith("_prune") else 0.1
        for side in SIDES:
            fields[f"share_attention_{side}"] = _shared(config, f"share_att_{side}") or ""
            order = _shared(config, f"share_layer_{side}") or ()
            fields[f"share_layer_{side}"] = tuple(order) if isinstance(order, list) else order
        if self.relation:
            plain = config.get("no_box_trigonometric_embedding", False)
            fields["box_embedding"] = "plain" if plain else "trig"
        return fields

    def config_fields(self, fields):
        keys = super().config_fields(fields)
        for side in SIDES:
            keys[f"share_att_{side}"] = fields[f"share_attention_{side}"] or None
            keys[f"share_layer_{side}"] = list(fields[f"share_layer_{side}"]) or None
        if self.relation:
            keys["no_box_trigonometric_embedding"] = fields["box_embedding"] == "plain"
        return keys

    def rules(self, config):
        rules = _linear("att_embed.0" if self.relation else f"{self.root}.src_embed.0", "src_embed")
        for side in SIDES:
            order = _shared(config, f"share_layer_{side}") or range(config["num_layers"])
            for position, layer in enumerate(order):
                name = f"{self.root}.{side}.layers.{position}"
                rules += self._layer(name, f"{side}_layers_{layer}", side, config)
            rules += _norm(f"{self.root}.{side}.norm", f"{side}_norm")
        rules.append(Rule(f"{self.root}.tgt_embed.0.lut.weight", ("tgt_embed", "embedding")))
        return rules + _linear(f"{self.root}.generator.proj", "logits")

    def _layer(self, name: str, path: str, side: str, config: Mapping[str, Any]) -> list[Rule]:
        projections = _PROJECTIONS[_shared(config, f"share_att_{side}") or ""]
        linears = [
            (f"{theirs}.linears.{i}", ours, projection)
            for theirs, ours in _ATTENTIONS[side]
            for i, projection in enumerate(projections)
        ]
        if side == "encoder" and self.relation:
            heads = range(config["num_heads"])
            linears += [(f"self_attn.WGs.{i}", "geometry", f"head_{i}") for i in heads]
        linears += [(f"feed_forward.{part}", "feed_forward", part) for part in ("w_1", "w_2")]
        rules = [rule for part, *ours in linears for rule in _linear(f"{name}.{part}", path, *ours)]
        sublayers = [ours for _, ours in _ATTENTIONS[side]] + ["feed_forward"]
        for i, sublayer in enumerate(sublayers):
            rules += _norm(f"{name}.sublayer.{i}.norm", path, f"{sublayer}_norm")
        return rules

    def buffers(self, config):
        return {f"{self.root}.tgt_embed.1.pe": sinusoids(5000, config["d_model"])[None]}


def _norm(name: str, *path: str) -> list[Rule]:
    return [Rule(f"{name}.a_2", (*path, "scale")), Rule(f"{name}.b_2", (*path, "bias"))]


def _shared(config: Mapping[str, Any], key: str) -> Any:
    return None if config["caption_model"].endswith("_prune") else config.get(key)


# By caption_model of the reference, without "_prune".
FAMILIES: dict[str, Family] = {
    "relation_transformer": _Transformer("relation_transformer"),
    "transformer": _Transformer("transformer"),
    "up_down_lstm": _UpDown(),
}
