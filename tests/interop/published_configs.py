"""The published checkpoints as folders of random weights, at small widths.

Names and shapes of tensors are spelled out here, as the PyTorch classes have them, not taken from
the importer. Configs are those of the release (`config.json` of the zips that could be had: TINY3
and ACORT), and for the others the flags of the commands in the form of each version.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from sparsecap_jax.tokenizers import train_tokenizer
from sparsecap_jax.torch_files import SparseTensor, save_torch_file

CAPTIONS = [f"a {c} {s} near the {t}" for c in ["red", "blue"] for s, t in ("ab", "cd", "ef")]
TWO_LAYERS = [0, 0, 0, 1, 1, 1]
DATA = {"att_feat_size": 2048, "max_seq_length": 18, "tokenizer": "word"}
UP_DOWN = {
    **{**DATA, "version": "0.4.0", "caption_model": "up_down_lstm_prune", "vocab_size": 10000},
    **{"rnn_size": 1000, "input_encoding_size": 1000, "att_hid_size": 512, "logit_layers": 1},
    **{"fc_feat_size": 2048, "drop_prob_lm": 0.1},
}
TINY3 = {
    **{**UP_DOWN, "rnn_size": 144, "input_encoding_size": 96, "att_hid_size": 96},
    **{"vocab_size": 3000, "max_seq_length": 16},
}
ORT = {
    **{**DATA, "version": "0.4.0", "caption_model": "relation_transformer_prune"},
    **{"vocab_size": 10000, "d_model": 512, "dim_feedforward": 2048, "num_layers": 6},
    **{"drop_prob_src": 0.1, "box_trigonometric_embedding": True},
}
ACORT = {
    **{**DATA, "version": "0.6.0", "caption_model": "relation_transformer", "vocab_size": 771},
    **{"d_model": 512, "dim_feedforward": 2048, "num_layers": 6, "num_heads": 8},
    **{"drop_prob_src": 0.1, "no_box_trigonometric_embedding": False, "max_seq_length": 26},
    **{"tokenizer": "radix", "radix_base": 768},
    **{"share_att_encoder": "kv", "share_att_decoder": "kv"},
    **{"share_layer_encoder": TWO_LAYERS, "share_layer_decoder": TWO_LAYERS},
}


def first_form(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same in the form of version 0.1.0: PAD is not counted, transformers have LSTMs' names."""
    names = {"d_model": "input_encoding_size", "dim_feedforward": "rnn_size"}
    names["drop_prob_src"] = "drop_prob_lm"
    renamed = names if "transformer" in config["caption_model"] else {}
    config = {renamed.get(key, key): value for key, value in config.items()}
    more = {"version": "0.1.0", "vocab_size": config["vocab_size"] - 1}
    return {**config, **more, "scst_mode": "sample_baseline"}


@dataclasses.dataclass(frozen=True)
class Row:
    """A checkpoint of the release.

    `tiny` holds the widths of the test; `weights` the published number of weights, with `digits`
    after the point of a million (None: exact); 0 where it is not known.
    """

    name: str
    config: Mapping[str, Any]
    tiny: Mapping[str, Any]
    weights: int
    digits: int | None = 1

    def small_config(self) -> dict[str, Any]:
        return {**self.config, **self.tiny, "att_feat_size": 6}


SMALL_UP_DOWN = {"rnn_size": 8, "input_encoding_size": 6, "att_hid_size": 4, "fc_feat_size": 6}
SMALL_ORT = {"d_model": 16, "dim_feedforward": 12}
FIRST_ORT = {"input_encoding_size": 16, "rnn_size": 12}


def pruned(config, kind, sparsity, **more):
    return {**config, "prune_type": kind, "prune_sparsity_target": sparsity, **more}


def _supermask_rows():
    for name, weight in (("0.95__wg_80.0", 0.95), ("0.991__wg_120.0", 0.991)):
        config = pruned(UP_DOWN, "supermask", weight)
        yield Row(f"UpDownLSTM__supermask__{name}", config, SMALL_UP_DOWN, 53_100_000)
    for sparsity in (0.95, 0.991):
        config = pruned(first_form(UP_DOWN), "mask_freeze", sparsity)
        name = f"UpDownLSTM__supermask__{sparsity}__SCST_sample_baseline_s60_e10_C1B0001"
        yield Row(name, config, SMALL_UP_DOWN, 53_100_000)
    for name, sparsity in (("0.95__wg_120.0", 0.95), ("0.9875__wg_80.0", 0.9875)):
        config = pruned(ORT, "supermask", sparsity)
        yield Row(f"RTrans__supermask__{name}", config, SMALL_ORT, 55_400_000)
    config = pruned(ORT, "supermask", 0.991)
    yield Row("RTrans__supermask__0.991__wg_120.0", config, SMALL_ORT, 55_400_000)
    for sparsity in (0.95, 0.9875, 0.991):
        config = pruned(first_form(ORT), "mask_freeze", sparsity)
        name = f"RTrans__supermask__{sparsity}__SCST_sample_baseline_s15_e10_C1B0001"
        yield Row(name, config, FIRST_ORT, 55_400_000)


def _acort_rows():
    yield Row("ACORT-base", ACORT, SMALL_ORT, 14_979_347, None)
    small = {**ACORT, "d_model": 256, "dim_feedforward": 1024}
    yield Row("ACORT-small", small, {"d_model": 8, "dim_feedforward": 10}, 4_213_779, None)
    # Not to be had: the widths are those of ORT-xsmall, heads of an odd width among them.
    xsmall = {**ACORT, "d_model": 104, "dim_feedforward": 416}
    yield Row("ACORT-xsmall", xsmall, {"d_model": 24, "dim_feedforward": 10}, 0)


TINY3_WEIGHTS = 1_896_313
SCST = "__SCST_random_sample_s60_e10_C1B0001"
ROWS = [
    Row(
        "TINY3_UpDownLSTM__supermask__0.975__wg_120.0",
        *(pruned(TINY3, "supermask", 0.975), SMALL_UP_DOWN, TINY3_WEIGHTS, None),
    ),
    Row(
        f"TINY3_UpDownLSTM__supermask__0.975__wg_120.0{SCST}",
        *(pruned(TINY3, "mask_freeze", 0.975), SMALL_UP_DOWN, TINY3_WEIGHTS, None),
    ),
    *_supermask_rows(),
    *_acort_rows(),
    Row(
        "ORT-baseline",
        *({**first_form(ORT), "caption_model": "relation_transformer"}, FIRST_ORT, 55_400_000),
    ),
]


def up_down_shapes(c: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Tensors of `up_down_lstm`; config of version 0.3.0 or later."""
    v, e, h = c["vocab_size"], c["input_encoding_size"], c["rnn_size"]
    a, f = c["att_hid_size"], c["att_feat_size"]
    linears = {"fc_embed.0": (h, f), "att_embed.0": (h, f), "ctx2att": (a, h), "logit": (v, h)}
    linears |= {"core.attention.h2att": (a, h), "core.attention.alpha_net": (1, a)}
    shapes = {"embed.0.weight": (v, e)}
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for cell, inputs in (("att_lstm", e + 2 * h), ("lang_lstm", 2 * h)):
        for part, width in (("ih", inputs), ("hh", h)):
            shapes[f"core.{cell}.weight_{part}"] = (4 * h, width)
            shapes[f"core.{cell}.bias_{part}"] = (4 * h,)
    return shapes


def transformer_shapes(c: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Tensors of `relation_transformer`, a name for each layer; config of the newest form."""
    d, ff, v = c["d_model"], c["dim_feedforward"], c["vocab_size"]
    projections = range(3 if c.get("share_att_encoder") == "kv" else 4)
    linears = {"att_embed.0": (d, c["att_feat_size"]), "model.generator.proj": (v, d)}
    norms = ["model.encoder.norm", "model.decoder.norm"]
    for layer in range(c["num_layers"]):
        for side, parts in (("encoder", ["self_attn"]), ("decoder", ["self_attn", "src_attn"])):
            root = f"model.{side}.layers.{layer}"
            linears |= {f"{root}.{part}.linears.{i}": (d, d) for part in parts for i in projections}
            linears |= {f"{root}.feed_forward.w_1": (ff, d), f"{root}.feed_forward.w_2": (d, ff)}
            norms += [f"{root}.sublayer.{i}.norm" for i in range(len(parts) + 1)]
        wgs = f"model.encoder.layers.{layer}.self_attn.WGs"
        linears |= {f"{wgs}.{head}": (1, 64) for head in range(c["num_heads"])}
    shapes: dict[str, tuple[int, ...]] = {"model.tgt_embed.0.lut.weight": (v, d)}
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms:
        shapes |= {f"{name}.a_2": (d,), f"{name}.b_2": (d,)}
    return shapes


def stored_once(name: str, c: Mapping[str, Any]) -> str:
    """The name that a tensor of a shared layer has in the first layer of its kind."""
    parts = name.split(".")
    order = c.get(f"share_layer_{parts[1]}") if parts[2:3] == ["layers"] else None
    if order:
        parts[3] = str(order.index(order[int(parts[3])]))
    return ".".join(parts)


def random_state(c: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Random tensors; those of shared layers are the same, matrices of pruned models half zeros."""
    rng = np.random.default_rng(5)
    state: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        first = stored_once(name, c)
        value = state[first] if first in state else rng.normal(size=shape).astype(np.float32)
        if c["caption_model"].endswith("_prune") and len(shape) == 2 and first not in state:
            value *= rng.random(shape) < 0.5
        state[name] = value
    return state


def write_folder(folder, row: Row, newest: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Write a checkpoint as published; returns the dense tensors.

    `newest` is the small config in the form that names tensors.
    """
    radix = row.config["tokenizer"] == "radix"
    options = {"radix_base": row.config["radix_base"]} if radix else {}
    kind = "radix" if radix else "word"
    tokenizer = train_tokenizer(kind, CAPTIONS, folder / "tokenizer", vocab_size=20, **options)
    for extra in (folder / "tokenizer").glob("*.json"):
        extra.unlink()  # the reference has none
    vocab = tokenizer.vocab_size
    newest = {**newest, "vocab_size": vocab}
    up_down = newest["caption_model"].startswith("up_down")
    shapes = (up_down_shapes if up_down else transformer_shapes)(newest)
    state = random_state(newest, shapes)
    counted = row.config["version"] >= "0.3.0"
    config = {**row.small_config(), "vocab_size": vocab if counted else vocab - 1}
    (folder / "config.json").write_text(json.dumps(config))
    stored: dict[str, Any] = dict(state)
    if config["caption_model"].endswith("_prune"):
        stored = {
            name: SparseTensor.from_dense(value) if value.ndim == 2 else value
            for name, value in state.items()
        }
        save_torch_file(folder / "model_best_pruned_sparse.pth", stored)
    else:
        stored["model.tgt_embed.1.pe"] = np.zeros((1, 50, newest["d_model"]), np.float32)
        save_torch_file(folder / "model_best.pth", stored)
    return state
