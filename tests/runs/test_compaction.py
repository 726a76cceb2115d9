"""Captioners without their dead units give the log-probs of the pruned ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.models import init_params, make_model
from sparsecap_jax.runs.compaction import compact_captioner, compact_run
from sparsecap_jax.runs.directory import load_run, save_model
from sparsecap_jax.runs.published import resolve_run
from sparsecap_jax.types import Regions

SIZES = {
    "up_down": {"embed_size": 7, "rnn_size": 8, "attention_size": 6, "logit_layers": 2},
    "soft_attention": {"embed_size": 7, "rnn_size": 8, "attention_size": 6},
    "soft_attention_gru": {"embed_size": 7, "rnn_size": 8, "attention_size": 6, "cell": "gru"},
    "relation_transformer": {"d_model": 8, "ff_size": 10, "num_layers": 2, "num_heads": 2},
    "transformer": {"d_model": 8, "ff_size": 10, "num_layers": 1, "num_heads": 2},
}
# Columns of zeros that each case gets, by leaf, and the widths that are left, counted by hand: the
# layers of one width keep what the fullest of them needs.
DEAD = {
    "up_down": (
        {  # unit 3 of each layer, and 5 of all but the image's
            ("fc_embed/kernel", -1): [3],
            ("region_embed/kernel", -1): [3, 5],
            ("region_embed/bias", -1): [3, 5],
            ("att_lstm/kernel_hh", -2): [3, 5],
            ("attention/h2att/kernel", -2): [3, 5],
            ("lang_lstm/kernel_ih", -2): [8 + 3, 8 + 5],
            ("lang_lstm/kernel_hh", -2): [3, 5],
            ("att_lstm/kernel_ih", -2): [3, 5, 16 + 2],
            ("logit_0/kernel", -2): [3, 5],
            ("logit_0/kernel", -1): [0, 1],
            ("attention/alpha/kernel", -2): [0, 4],
        },
        {"rnn_size": 7, "attention_size": 4, "embed_size": 6},
    ),
    "soft_attention": (
        {
            ("lstm/kernel_hh", -2): [1, 6],
            ("query/kernel", -2): [1, 6],
            ("logit/kernel", -2): [1, 6],
            ("values/kernel", -1): [2],
            ("score/kernel", -2): [0, 5],
            ("embed/embedding", -1): [4],
        },
        {"rnn_size": 6, "attention_size": 5, "embed_size": 6},
    ),
    "soft_attention_gru": (
        {
            ("gru_gates/kernel_hh", -2): [1, 6],
            ("gru_candidate/kernel_hh", -2): [1, 6],
            ("query/kernel", -2): [1, 6],
            ("logit/kernel", -2): [1, 6],
        },
        {"rnn_size": 6, "attention_size": 6, "embed_size": 7},
    ),
    "relation_transformer": (
        {
            ("encoder_layers_0/feed_forward/w_1/kernel", -1): [0, 1, 2, 3],
            ("encoder_layers_1/feed_forward/w_2/kernel", -2): [4, 5, 6],
            ("decoder_layers_0/feed_forward/w_1/kernel", -1): [7, 8],
            ("decoder_layers_1/feed_forward/w_1/kernel", -1): [1],
            ("decoder_layers_1/feed_forward/w_2/kernel", -2): [0, 9],
        },
        {"ff_size": 8},
    ),
    "transformer": (
        {
            ("encoder_layers_0/feed_forward/w_1/kernel", -1): [0, 1, 2, 3],
            ("decoder_layers_0/feed_forward/w_2/kernel", -2): [4, 5, 6],
        },
        {"ff_size": 7},
    ),
}


def inputs():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, 4, 9)).astype(np.float32)
    mask = np.array([[True] * 4, [True] * 3 + [False]])
    features *= mask[..., None]
    low = rng.uniform(0, 0.5, (2, 4, 2))
    boxes = np.concatenate([low, low + 0.3], -1).astype(np.float32)
    tokens = rng.integers(4, 11, (2, 2, 5)).astype(np.int32)
    return Regions(features, mask, boxes, features.mean(1)), tokens


@pytest.mark.parametrize("case", sorted(SIZES))
def test_log_probs_are_the_same(case):
    name = case.removesuffix("_gru")
    module = make_model(
        {"name": name, "vocab_size": 11, "feature_size": 9, "dropout": 0.0, **SIZES[case]}
    )
    regions, tokens = inputs()
    params = jax.device_get(init_params(module, jax.random.key(1)))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: leaf + 0.2 * rng.normal(size=leaf.shape), params)
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)
    dead, widths = DEAD[case]
    masks = {}
    for (path, axis), entries in dead.items():
        leaf, places = params, path.split("/")
        for key in places:
            leaf = leaf[key]
        node = masks
        for key in places[:-1]:
            node = node.setdefault(key, {})
        mask = node.setdefault(places[-1], np.ones(leaf.shape, np.float32))
        np.moveaxis(mask, axis, 0)[entries] = 0.0
    pruned = jax.tree.map(np.copy, params)
    small_module, small = compact_captioner(module, pruned, masks)
    assert small.widths == widths
    assert {name: getattr(small_module, name) for name in widths} == widths
    expected = small_module.init(jax.random.key(0), regions, tokens)["params"]
    assert jax.tree.map(np.shape, small.params) == jax.tree.map(np.shape, expected)

    def zeroed(tree, node):
        return {
            key: leaf
            if key not in node
            else (zeroed(leaf, node[key]) if isinstance(leaf, dict) else leaf * node[key])
            for key, leaf in tree.items()
        }

    full = module.apply(
        {"params": jax.tree.map(jnp.asarray, zeroed(params, masks))}, regions, tokens
    )
    less = small_module.apply({"params": small.params}, regions, tokens)
    np.testing.assert_allclose(less, full, atol=1e-5)
    assert small.sizes[0] == sum(x.size for x in jax.tree.leaves(small.params)) < small.sizes[1]


def test_runs_are_saved_and_loaded(tmp_path):
    """The captioner of the package, without unit 0 of every layer as wide as its LSTMs."""
    run = load_run(resolve_run("flickr8k-mini"))
    params = jax.tree.map(np.array, run.params)
    rnn = run.model.rnn_size
    for name in ("fc_embed", "region_embed"):
        params[name]["kernel"][:, 0] = params[name]["bias"][0] = 0
    params["attention"]["h2att"]["kernel"][0] = params["logit_0"]["kernel"][0] = 0
    for name in ("att_lstm", "lang_lstm"):
        params[name]["kernel_hh"][0] = 0
    params["att_lstm"]["kernel_ih"][0] = params["lang_lstm"]["kernel_ih"][rnn] = 0
    run = dataclasses.replace(run, params=params)
    small = compact_run(run)
    assert small.model.rnn_size == small.config.model.rnn_size < rnn
    save_model(tmp_path / "small.scap", small)
    again = load_run(tmp_path / "small.scap")
    assert again.model == small.model
    regions, tokens = inputs()
    rng = np.random.default_rng(0)
    width = run.model.feature_size
    regions = regions._replace(
        features=rng.normal(size=(2, 4, width)).astype(np.float32),
        fc=rng.normal(size=(2, width)).astype(np.float32),
    )
    full, less = (one.model.apply({"params": one.params}, regions, tokens) for one in (run, again))
    np.testing.assert_allclose(less, full, atol=2e-5)


def test_other_models_are_refused():
    with pytest.raises(ConfigError, match="units of Dense are not known"):
        compact_captioner(nn.Dense(3), {})
