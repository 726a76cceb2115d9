"""The PyTorch reference's models as ours: names, shapes and configs of all its versions."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from sparsecap_jax.errors import CheckpointError, ConfigError
from sparsecap_jax.interop import transformer_names, up_down_names
from sparsecap_jax.interop.rules import Rule
from sparsecap_jax.models import abstract_params, make_model

MASK_SUFFIX = "_pruning_mask"
NEWEST = "1.0.0-alpha"
"""Version of the reference whose config.json is written; its form is that of 0.6.0."""

# caption_model of the reference (without "_prune") -> (our model, its module of names)
FAMILIES = {
    "relation_transformer": ("relation_transformer", transformer_names),
    "transformer": ("transformer", transformer_names),
    "up_down_lstm": ("up_down", up_down_names),
}


def upgrade_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Bring a reference config.json of any version to the form of the newest (0.6).

    Without a version, a config that has the keys of 0.6 is of that form, any other of 0.1.0, as
    in the reference (`utils/config.py: Config.compat`). Before 0.6.0
    there is no sharing, boxes are chosen by `box_trigonometric_embedding`, and heads default to 8;
    before 0.3.0 `vocab_size` leaves PAD out and transformers use the names of LSTM sizes.

    Raises:
        ConfigError: no `caption_model`, or a version that is no version.
    """
    config = dict(config)
    if not isinstance(config.get("caption_model"), str):
        raise ConfigError("reference config.json: caption_model is missing; expected its name")
    unversioned = "0.6.0" if "share_layer_encoder" in config else "0.1.0"
    version = _version(config.get("version", unversioned))
    transformer = "transformer" in config["caption_model"]
    if version < (0, 6, 0):
        for key in ("share_att", "share_layer"):
            config[f"{key}_encoder"] = config[f"{key}_decoder"] = None
    if version < (0, 6, 0) and "box_trigonometric_embedding" in config:
        config["no_box_trigonometric_embedding"] = not config.pop("box_trigonometric_embedding")
    if transformer:
        config.setdefault("num_heads", 8)
    if version < (0, 3, 0):
        config["vocab_size"] += 1
        for old, new in _RENAMED_0_3 if transformer else ():
            if old in config:
                config[new] = config.pop(old)
    return config


_RENAMED_0_3 = (
    ("input_encoding_size", "d_model"),
    ("rnn_size", "dim_feedforward"),
    ("drop_prob_lm", "drop_prob_src"),
)


def model_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Our `config.model` (`{"name": ..., fields}`) for a reference config of any version."""
    config = upgrade_config(config)
    name, names = _family(config)
    return {"name": name, **names.model_fields(config)}


def rules(config: Mapping[str, Any]) -> list[Rule]:
    """All correspondences of tensors for a reference config of any version."""
    config = upgrade_config(config)
    return _family(config)[1].rules(config)


def reference_config(model: Mapping[str, Any], *, pruned: bool = False) -> dict[str, Any]:
    """The model's part of the reference's config.json, newest form; undoes `model_config`.

    Args:
        model: `{"name": ..., field: value}`, all fields.
        pruned: whether to name the class that has masks.

    Raises:
        ConfigError: the reference has no such model, or no class of it with masks.
    """
    found = {ours: (theirs, names) for theirs, (ours, names) in FAMILIES.items()}
    if model["name"] not in found:
        raise ConfigError(
            f"config.model.name is {model['name']!r}, which the reference does not have; "
            f"expected one of {', '.join(sorted(found))}"
        )
    caption_model, names = found[model["name"]]
    if pruned and not names.has_pruned_class(model):
        raise ConfigError(
            f"config.model: the reference has no class with masks for {model['name']!r} with these "
            "fields (it has for up_down, and for relation_transformer without sharing)"
        )
    return {
        "version": NEWEST,
        "caption_model": caption_model + ("_prune" if pruned else ""),
        **names.config_fields(model),
    }


def has_pruned_class(model: Mapping[str, Any]) -> bool:
    """Whether the reference has a class with masks for `model` (`{"name": ..., fields}`)."""
    return any(
        ours == model["name"] and names.has_pruned_class(model) for ours, names in FAMILIES.values()
    )


def load_state_dict(
    state_dict: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """Turn a state dict of the reference into our model and its variables.

    Args:
        state_dict: arrays by the reference's names, masks as `<weight>_pruning_mask`; sinusoid
            buffers (`*.pe`) are ignored.
        config: a dict in the style of the reference's config.json, any version.

    Returns:
        The unbound module, and `{"params": ..., "masks": ...}`; masks as stored (logits for
        supermasks) over the same paths as params, `{}` when there are none.

    Raises:
        CheckpointError: a tensor is missing, unexpected, of another shape than the config says,
            not finite, or differs from the one it shares its layer with.
    """
    model = make_model(model_config(config))
    expected = _expected_shapes(model)
    left = {k: np.asarray(v) for k, v in state_dict.items() if not k.endswith(".pe")}
    params: dict[tuple, np.ndarray] = {}
    masks: dict[tuple, np.ndarray] = {}
    for rule in rules(config):
        if rule.reference not in left:
            raise CheckpointError(f"state dict: tensor {rule.reference!r} is missing")
        _place(params, rule, rule.reference, left.pop(rule.reference), expected)
        mask_name = rule.reference + MASK_SUFFIX
        if mask_name in left:
            _place(masks, rule, mask_name, left.pop(mask_name), expected)
    if left:
        names = ", ".join(sorted(left)[:5])
        raise CheckpointError(f"state dict: {len(left)} tensors no layer of ours has: {names}")
    return model, {"params": unflatten_dict(params), "masks": unflatten_dict(masks)}


def export_state_dict(
    variables: Mapping[str, Any], config: Mapping[str, Any], *, buffers: bool = False
) -> dict[str, np.ndarray]:
    """Write params and masks as a state dict of the reference; the inverse of `load_state_dict`.

    Args:
        variables: `{"params": ..., "masks": ...}`; masks may be `{}` or absent.
        config: the reference's config of the model.
        buffers: whether to add the tables of positions (`*.pe`), without which a transformer of
            the reference does not load with `strict=True`. They are computed in float64, the
            reference's in float32: up to 5e-4 apart at position 4999, 2e-6 in captions.

    Returns:
        float32 arrays by the reference's names; shared layers occur once per layer name, as one
        array.

    Raises:
        CheckpointError: params or masks do not have the paths that the config asks for.
    """
    params = flatten_dict(variables["params"])
    masks = flatten_dict(variables.get("masks") or {})
    state: dict[str, np.ndarray] = {}
    turned: dict[tuple, np.ndarray] = {}  # so that names which share a layer share its array

    def put(name: str, kind: str, rule: Rule, value: Any) -> None:
        key = (kind, rule.path)
        if key not in turned:
            turned[key] = _turn(np.asarray(value, np.float32), rule)
        state[name] = turned[key]

    used = set()
    for rule in rules(config):
        if rule.path not in params:
            raise CheckpointError(f"params: {'/'.join(rule.path)} is missing")
        used.add(rule.path)
        put(rule.reference, "params", rule, params[rule.path])
        if rule.path in masks:
            put(rule.reference + MASK_SUFFIX, "masks", rule, masks[rule.path])
    for path in sorted({*params, *masks} - used):
        raise CheckpointError(f"params: {'/'.join(path)} has no place in the reference's model")
    if buffers:
        upgraded = upgrade_config(config)
        state |= _family(upgraded)[1].buffers(upgraded)
    return state


def _family(config: Mapping[str, Any]):
    name = config["caption_model"].removesuffix("_prune")
    if name not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ConfigError(f"reference config.json: caption_model {name!r} is none of {known}")
    return FAMILIES[name]


def _version(text: str) -> tuple[int, ...]:
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", str(text))
    if not match:
        raise ConfigError(f"reference config.json: version {text!r}; expected one like '0.4.0'")
    return tuple(int(part) for part in match.groups())


def _expected_shapes(model: nn.Module) -> dict[tuple, tuple[int, ...]]:
    """Shapes of all leaves of `model`'s params by path, without computing anything."""
    return {path: leaf.shape for path, leaf in flatten_dict(abstract_params(model)).items()}


def _place(tree: dict, rule: Rule, name: str, value: np.ndarray, expected: dict) -> None:
    """Put one tensor of the reference into a flat tree of ours, checked."""
    value = _turn(np.asarray(value, np.float32), rule)
    if value.shape != expected[rule.path]:
        raise CheckpointError(
            f"state dict: tensor {name!r} has shape {_turn(value, rule).shape}; the config expects "
            f"{expected[rule.path][::-1] if rule.kind == 'linear' else expected[rule.path]}"
        )
    if not np.isfinite(value).all():
        raise CheckpointError(f"state dict: tensor {name!r} has values that are not finite")
    if rule.path in tree and not np.array_equal(tree[rule.path], value):
        raise CheckpointError(
            f"state dict: tensor {name!r} differs from the layer it is shared with"
        )
    tree[rule.path] = value


def _turn(value: np.ndarray, rule: Rule) -> np.ndarray:
    return np.ascontiguousarray(value.T) if rule.kind == "linear" else value
