"""Configs and state dicts of the PyTorch reference, in all its versions, and what they are here."""

import logging
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from sparsecap_jax.errors import CheckpointError, ConfigError
from sparsecap_jax.interop.names import FAMILIES, SIDES, Family, Rule
from sparsecap_jax.models import abstract_params, make_model
from sparsecap_jax.tokenizers import Tokenizer
from sparsecap_jax.tokenizers.radix import RadixTokenizer

logger = logging.getLogger(__name__)

MASK_SUFFIX = "_pruning_mask"
NEWEST = "1.0.0-alpha"
"""Version of the reference whose config.json is written; its form is that of 0.6.0."""

_NESTED = ("state_dict", "model_state_dict", "model")  # where training programs keep the tensors
_PARALLEL = "module."  # what `torch.nn.DataParallel` puts before each name

# Keys of transformers before 0.3.0, and what they are called since.
_RENAMED = {
    "input_encoding_size": "d_model",
    "rnn_size": "dim_feedforward",
    "drop_prob_lm": "drop_prob_src",
}


def upgrade_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Bring a reference config.json of any version to the form of the newest (0.6).

    Without a version, a config that has the keys of 0.6 is of that form, any other of 0.1.0, as
    in the reference (`utils/config.py: Config.compat`). Before 0.6.0 there is no sharing and boxes
    are chosen by `box_trigonometric_embedding`; heads default to 8; before 0.3.0 `vocab_size`
    leaves PAD out and transformers use the names of LSTM sizes.

    Raises:
        ConfigError: no `caption_model`, or a malformed version.
    """
    config = dict(config)
    if not isinstance(config.get("caption_model"), str):
        raise ConfigError("reference config.json: caption_model is missing; expected its name")
    transformer = "transformer" in config["caption_model"]
    text = config.get("version", "0.6.0" if "share_layer_encoder" in config else "0.1.0")
    match = re.match(r"(\d{1,9})\.(\d{1,9})\.(\d{1,9})", str(text))
    if not match:
        raise ConfigError(f"reference config.json: version {text!r:.80}; expected one like '0.4.0'")
    version = tuple(map(int, match.groups()))
    if version < (0, 6, 0):
        for key in ("share_att", "share_layer"):
            config[f"{key}_encoder"] = config[f"{key}_decoder"] = None
        if "box_trigonometric_embedding" in config:
            config["no_box_trigonometric_embedding"] = not config.pop("box_trigonometric_embedding")
    if transformer:
        config.setdefault("num_heads", 8)
    if version < (0, 3, 0):
        config["vocab_size"] = number(config, "vocab_size") + 1
        for old, new in _RENAMED.items() if transformer else ():
            if old in config:
                config[new] = config.pop(old)
    return config


def number(
    config: Mapping[str, Any], key: str, kind: type = int, default: Any = None
) -> int | float:
    """Return the number `key` of a reference config.json; ConfigError where it is none."""
    value = config.get(key, default)
    if type(value) not in (int, float) or not -1e9 < value < 1e9 or kind(value) != value:
        expected = "a whole number" if kind is int else "a number"
        raise ConfigError(f"reference config.json: {key} is {value!r:.80}; expected {expected}")
    return kind(value)


def _family(config: Mapping[str, Any]) -> tuple[Family, dict[str, Any]]:
    """Names of the model that a config describes, and the config in the newest form."""
    config = upgrade_config(config)
    name = config["caption_model"].removesuffix("_prune")
    if name not in FAMILIES:
        found = f"reference config.json: caption_model {name!r:.80}"
        raise ConfigError(f"{found} is none of {', '.join(FAMILIES)}")
    return FAMILIES[name], config


def model_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return our `config.model` (`{"name": ..., fields}`) for a reference config of any version."""
    family, config = _family(config)
    return {"name": family.model, **family.model_fields(config)}


def rules(config: Mapping[str, Any]) -> list[Rule]:
    """List all correspondences of tensors for a reference config of any version."""
    family, config = _family(config)
    return family.rules(config)


def reference_config(model: Mapping[str, Any], *, pruned: bool = False) -> dict[str, Any]:
    """Undo `model_config`: the model's part of the newest config.json, `pruned`: with masks.

    Raises:
        ConfigError: the reference has no such model, or no class of it with masks.
    """
    names = {family.model: name for name, family in FAMILIES.items()}
    if model["name"] not in names:
        raise ConfigError(
            f"config.model.name is {model['name']!r}, which the reference does not have; "
            f"expected one of {', '.join(sorted(names))}"
        )
    if pruned and not has_pruned_class(model):
        raise ConfigError(
            f"config.model: the reference has no class with masks for {model['name']!r} with these "
            "fields (it has for up_down, and for relation_transformer without sharing)"
        )
    name = names[model["name"]]
    keys = FAMILIES[name].config_fields(model)
    return {"version": NEWEST, "caption_model": name + "_prune" * pruned, **keys}


def has_pruned_class(model: Mapping[str, Any]) -> bool:
    """Return whether the reference has a class with masks for `model` (`{"name": ..., fields}`)."""
    if model["name"] == "relation_transformer":
        parts = ("attention", "layer")
        return not any(model[f"share_{part}_{side}"] for part in parts for side in SIDES)
    return model["name"] == "up_down"


def tokenizer_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return our `config.tokenizer`, without `vocab_size`, for a reference config.json."""
    name = config.get("tokenizer", "word")
    options = {"radix_base": number(config, "radix_base")} if name == "radix" else {}
    return {"name": name, **options}


def tokenizer_fields(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the keys that a tokenizer of the reference leaves in its config."""
    radix = isinstance(tokenizer, RadixTokenizer)
    name = "character" if tokenizer.name == "char" else tokenizer.name
    fields: dict[str, Any] = {"tokenizer": name}
    if isinstance(tokenizer, RadixTokenizer):
        fields["radix_base"] = tokenizer.radix_base
    for token in ("bos", "eos", "unk", "pad"):
        # A word of several digits has no single id: the reference has none for UNK then, even if
        # words have one digit only.
        exists = not (radix and token == "unk")
        fields[f"{token}_token"] = f"<{token}>" if exists else None
        fields[f"{token}_token_id"] = getattr(tokenizer, f"{token}_id") if exists else None
    fields |= {"mask_token": fields["unk_token"], "mask_token_id": fields["unk_token_id"]}
    symbols = {"num_control_symbols": 0, "num_special_symbols": 4}
    return {**fields, "user_defined_symbols": None, **symbols}


def load_state_dict(
    state_dict: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """Turn a state dict of the reference into our model and its variables.

    Args:
        state_dict: arrays by the reference's names, dense or sparse, masks as
            `<weight>_pruning_mask`; sinusoid buffers (`*.pe`) are ignored. A dict around it, such
            as `{"state_dict": ...}`, and the prefix `module.` of all names are taken off, with a
            warning.
        config: the reference's config.json, any version.

    Returns:
        The unbound module, and `{"params": ..., "masks": ...}`; masks as stored (logits for
        supermasks) over the same paths as params, `{}` when there are none.

    Raises:
        CheckpointError: a tensor is missing, unexpected, no array, of another shape than the
            config says, not finite, or differs from the one it shares its layer with.
    """
    try:
        model = make_model(model_config(config))
    except ConfigError as error:
        raise ConfigError(f"reference config.json: {error}") from error
    family, config = _family(config)
    # Values that were checked, in the form that the reference gives them.
    fields = family.model_fields(config)
    config |= family.config_fields({name: getattr(model, name) for name in fields})
    shapes = {path: leaf.shape for path, leaf in flatten_dict(abstract_params(model)).items()}
    left = _tensors(state_dict)
    params: dict[tuple, np.ndarray] = {}
    masks: dict[tuple, np.ndarray] = {}
    for rule in family.rules(config):
        if rule.reference not in left:
            raise CheckpointError(f"state dict: tensor {rule.reference!r} is missing")
        for tree, name in ((params, rule.reference), (masks, rule.reference + MASK_SUFFIX)):
            if name in left:
                value = _checked(name, left.pop(name), rule, shapes[rule.path])
                if not np.array_equal(tree.setdefault(rule.path, value), value):
                    raise CheckpointError(
                        f"state dict: tensor {name!r} differs from the layer it is shared with"
                    )
    if left:
        names = ", ".join(sorted(left)[:5])
        raise CheckpointError(f"state dict: {len(left)} tensors no layer of ours has: {names}")
    return model, {"params": unflatten_dict(params), "masks": unflatten_dict(masks)}


def _tensors(state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the tensors of a model as float32, by the names that they have in the reference."""
    nested = [key for key in _NESTED if isinstance(state_dict.get(key), Mapping)]
    if nested:
        logger.warning("state dict: took the tensors of its %r", nested[0])
        state_dict = state_dict[nested[0]]
    if state_dict and all(name.startswith(_PARALLEL) for name in state_dict):
        logger.warning("state dict: took %r off the name of every tensor", _PARALLEL)
        state_dict = {name.removeprefix(_PARALLEL): v for name, v in state_dict.items()}
    tensors = {}
    for name, value in state_dict.items():
        if not name.endswith(".pe"):
            try:
                dense = value.to_dense() if hasattr(value, "to_dense") else value
                tensors[name] = np.asarray(dense, np.float32)
            except (TypeError, ValueError) as error:
                problem = f"{name!r} is a {type(value).__name__}, no tensor of numbers"
                raise CheckpointError(f"state dict: {problem}") from error
    return tensors


def export_state_dict(
    variables: Mapping[str, Any], config: Mapping[str, Any], *, buffers: bool = False
) -> dict[str, np.ndarray]:
    """Write params and masks as a state dict of the reference; the inverse of `load_state_dict`.

    Args:
        variables: `{"params": ..., "masks": ...}`; masks may be `{}` or absent.
        config: see `load_state_dict`.
        buffers: whether to add the tables of positions (`*.pe`), without which a transformer of
            the reference does not load with `strict=True`. They are computed in float64, the
            reference's in float32: up to 5e-4 apart at position 4999, 2e-6 in captions.

    Returns:
        float32 arrays by the reference's names; shared layers occur once per layer name, as one
        array.

    Raises:
        CheckpointError: params or masks do not have the paths that the config asks for.
    """
    family, config = _family(config)
    params = flatten_dict(variables["params"])
    masks = flatten_dict(variables.get("masks") or {})
    state: dict[str, np.ndarray] = {}
    arrays: dict[tuple, np.ndarray] = {}  # so that names which share a layer share its array
    all_rules = family.rules(config)
    for rule in all_rules:
        if rule.path not in params:
            raise CheckpointError(f"params: {'/'.join(rule.path)} is missing")
        for leaves, suffix in ((params, ""), (masks, MASK_SUFFIX)):
            if rule.path in leaves:
                array = _turn(np.asarray(leaves[rule.path], np.float32), rule)
                state[rule.reference + suffix] = arrays.setdefault((suffix, rule.path), array)
    for path in sorted({*params, *masks} - {rule.path for rule in all_rules}):
        raise CheckpointError(f"params: {'/'.join(path)} has no place in the reference's model")
    return state | (family.buffers(config) if buffers else {})


def _checked(name: str, value: np.ndarray, rule: Rule, shape: tuple[int, ...]) -> np.ndarray:
    turned = _turn(value, rule)
    if turned.shape != shape:
        raise CheckpointError(
            f"state dict: tensor {name!r} has shape {value.shape}; the config expects "
            f"{shape[::-1] if rule.transposed else shape}"
        )
    if not np.isfinite(turned).all():
        raise CheckpointError(f"state dict: tensor {name!r} has values that are not finite")
    return turned


def _turn(value: np.ndarray, rule: Rule) -> np.ndarray:
    return np.ascontiguousarray(value.T) if rule.transposed else value
