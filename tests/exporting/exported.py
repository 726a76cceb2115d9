"""Tiny captioners of every family, exported, and what their folders say and do."""

import dataclasses
import importlib.util

import numpy as np
import pytest
from captioner_runs import WORDS
from sparse_cases import random_params

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.exporting.manifest import RUNNER
from sparsecap_jax.exporting.packages import load_jax2onnx
from sparsecap_jax.models import abstract_params, make_model
from sparsecap_jax.runs.config import default_config, model_config, model_section
from sparsecap_jax.runs.directory import LoadedRun, save_model
from sparsecap_jax.tokenizers import train_tokenizer

WIDTH, REGIONS, LENGTH, IMAGES = 6, 8, 9, 200
RECURRENT = {"embed_size": 12, "rnn_size": 16, "attention_size": 10}
TRANSFORMER = {"d_model": 16, "ff_size": 24, "num_layers": 1, "num_heads": 4}
SHARED = {
    **{f"share_layer_{side}": (0, 0) for side in ("encoder", "decoder")},
    **{f"share_attention_{side}": "kv" for side in ("encoder", "decoder")},
}
FAMILIES = {
    "soft_attention_lstm": ("soft_attention", RECURRENT),
    "soft_attention_gru": ("soft_attention", {**RECURRENT, "cell": "gru"}),
    "up_down": ("up_down", RECURRENT),
    "ort": ("relation_transformer", TRANSFORMER),
    "acort": ("relation_transformer", {**TRANSFORMER, **SHARED}),
}
SEEDS = {"acort": 4}  # where other images get other captions
SEARCH = {"beam_size": 3, "length_penalty": "avg_0", "no_repeat_ngram": 2, "suppress_unk": True}
SEARCH |= {"bad_endings": ("a", "the")}


def make_model_file(folder, family, tokenizer="word"):
    """Write a model file of random weights, half of them pruned, with a search of its own."""
    name, fields = FAMILIES[family]
    config = default_config(model=name)
    with config.unlocked():
        config.model = model_section(name, **fields)
    config.max_seq_length = LENGTH
    config.data.feature_size = WIDTH
    trained = train_tokenizer(tokenizer, WORDS, folder / f"{family}_tokenizer", vocab_size=40)
    module = make_model(model_config(config, trained.vocab_size))
    params = random_params(abstract_params(module), 0.5, SEEDS.get(family, 0))
    bias = params["logit" if "logit" in params else "logit_0" if "logit_0" in params else "logits"]
    bias["bias"][[trained.pad_id, trained.bos_id]] = -50
    run = LoadedRun(config, trained, module, params, {})
    save_model(folder / f"{family}.scap", dataclasses.replace(run, search=SEARCH))
    return folder / f"{family}.scap"


def image_arrays(count=IMAGES, width=WIDTH, regions=REGIONS):
    """Features and boxes of images with one region or more."""
    rng = np.random.default_rng(5)
    numbers = rng.integers(1, regions + 1, count)
    features = [np.maximum(rng.normal(0.5, 3.0, (n, width)), 0) for n in numbers]
    corners = [np.sort(rng.random((n, 2, 2)), axis=1).reshape(-1, 4) for n in numbers]
    return [[a.astype(np.float32) for a in arrays] for arrays in (features, corners)]


def runner_of(folder):
    """The module `caption.py` of a folder."""
    return _module(folder / "caption.py")


def runner_of_source():
    """The runner as it lies in the package; skips where onnxruntime is missing."""
    pytest.importorskip("onnxruntime")
    return _module(RUNNER)


def _module(path):
    spec = importlib.util.spec_from_file_location("exported_caption", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(captions, length):
    """Tokens of captions as the graphs return them, `[b, T]`, PAD (0) after the ends."""
    return np.array([(*c.tokens, *[0] * (length - len(c.tokens))) for c in captions], np.int32)


def need_jax2onnx():
    """Skip where jax2onnx is not there and cannot be installed."""
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package)
    try:
        load_jax2onnx()
    except ConfigError as error:
        pytest.skip(str(error))
