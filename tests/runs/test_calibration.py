"""Inputs of captioners' layers: what each kernel multiplies, words and regions that count alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsecap_jax.formulas import lstm_state
from sparsecap_jax.models import init_params, make_model
from sparsecap_jax.models.late_gradients import multiply_by
from sparsecap_jax.models.layers import gru_state
from sparsecap_jax.pruning import by_path, prune_layers
from sparsecap_jax.pruning.layer_inputs import gram_of
from sparsecap_jax.pruning.paths import select, show
from sparsecap_jax.runs.calibration import captioner_inputs
from sparsecap_jax.types import Batch, Regions

VOCABULARY, WIDTH = 11, 9
RECURRENT = {"embed_size": 7, "rnn_size": 8, "attention_size": 6}
SMALL = {"d_model": 8, "ff_size": 10, "num_layers": 2, "num_heads": 2}
CASES = {
    "up_down": {"name": "up_down", **RECURRENT, "logit_layers": 2},
    "lstm": {"name": "soft_attention", **RECURRENT},
    "gru": {"name": "soft_attention", **RECURRENT, "cell": "gru"},
    "transformer": {"name": "transformer", **SMALL, "remat": True},
    "ort": {"name": "relation_transformer", **SMALL},
    "acort": {
        "name": "relation_transformer",
        **SMALL,
        "share_layer_decoder": (0, 0),
        "share_attention_encoder": "kv",
        "share_attention_decoder": "qk",
    },
}
CASE = pytest.mark.parametrize("case", sorted(CASES))


def batch(seed=0, regions=4):
    """Two images of 4 and 3 regions, with two captions each, of 3 to 6 tokens."""
    rng = np.random.default_rng(seed)
    mask = np.array([[True] * 4, [True] * 3 + [False]])
    features = rng.normal(size=(2, 4, WIDTH)).astype(np.float32) * mask[..., None]
    low = rng.uniform(0, 0.5, (2, 4, 2))
    boxes = (np.concatenate([low, low + 0.3], -1) * mask[..., None]).astype(np.float32)
    fc = rng.normal(size=(2, WIDTH)).astype(np.float32)
    more = [(0, 0), (0, regions - 4), (0, 0)]
    images = Regions(np.pad(features, more), np.pad(mask, more[:2]), np.pad(boxes, more), fc)
    lengths = np.array([[6, 3], [4, 5]])
    real = np.arange(6) < lengths[..., None]
    tokens = np.where(real, rng.integers(4, VOCABULARY, (2, 2, 6)), 0).astype(np.int32)
    return Batch(images, tokens, real, np.arange(2, dtype=np.int32))


def make(case):
    fields = {"vocab_size": VOCABULARY, "feature_size": WIDTH, "dropout": 0.0, **CASES[case]}
    module = make_model(fields)
    params = init_params(module, jax.random.key(1))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: x + 0.2 * rng.normal(size=x.shape).astype(np.float32), params)
    return module, params


def kernels(params, name):
    leaf = params
    for key in name.split("/"):
        leaf = leaf[key]
    return leaf


@CASE
def test_every_weight_is_seen_in_the_order_of_the_layers(case):
    module, params = make(case)
    inputs = captioner_inputs(module)(params, batch())
    assert {*inputs} == {show(path) for path in select(params)}
    order = list(inputs)
    assert order[-1].startswith("logit")
    assert "embed" in order[0] or case in ("lstm", "gru")
    if case == "up_down":
        assert order == [
            *("fc_embed/kernel", "region_embed/kernel", "ctx2att/kernel", "embed/embedding"),
            *("att_lstm/kernel_ih", "att_lstm/kernel_hh"),
            *("attention/h2att/kernel", "attention/alpha/kernel"),
            *("lang_lstm/kernel_ih", "lang_lstm/kernel_hh", "logit_0/kernel", "logit_1/kernel"),
        ]
    if case == "acort":  # of regions once, and of words in each application
        shared = inputs["decoder_layers_0/cross_attn/query/kernel"]
        assert [part.shape for part in shared] == [(8, 8), *[(5, 2, 2, 1, 8)] * 2]
    for name, leaf in inputs.items():
        gram_of(leaf, kernels(params, name).shape)  # they fit


@CASE
def test_the_last_layer_makes_the_log_probs_of_teacher_forcing(case):
    module, params = make(case)
    images = batch()
    inputs = captioner_inputs(module)(params, images)
    name = list(inputs)[-1].removesuffix("/kernel")
    layer = params[name]
    rows = np.asarray(inputs[f"{name}/kernel"])  # [T, B, K, 1, I]
    logits = rows[:, :, :, 0] @ layer["kernel"] + layer["bias"]
    found = np.moveaxis(np.asarray(jax.nn.log_softmax(logits)), 0, 2)
    expected = module.apply({"params": params}, images.regions, images.tokens[..., :-1])
    real = images.token_mask[..., 1:]
    np.testing.assert_allclose(found[real], np.asarray(expected)[real], atol=1e-5)
    assert not rows[~np.moveaxis(real, -1, 0)].any()


@pytest.mark.parametrize("case", ["up_down", "lstm", "gru"])
def test_cells(case):
    """States that the cells' formulas make of their recorded inputs are the next recorded ones."""
    module, params = make(case)
    images = batch()
    every = images._replace(token_mask=np.ones_like(images.token_mask))
    found = {n: np.asarray(x) for n, x in captioner_inputs(module)(params, every).items()
             if n.split("/")[0] in params and "_" in n.split("/")[-1]}  # fmt: skip

    def gates(cell, bias, at):
        ih, hh = (found[f"{cell}/kernel_{part}"][at, :, :, 0] for part in ("ih", "hh"))
        weights = params[cell]
        return ih @ weights["kernel_ih"] + hh @ weights["kernel_hh"] + bias

    if case == "up_down":
        names = "att_lstm", "lang_lstm"
        biases = [params[n]["bias_ih"] + params[n]["bias_hh"] for n in names]
        cells = [np.zeros((2, 2, 8), np.float32)] * 2
        for at in range(4):
            for i, name in enumerate(names):
                state, cells[i] = lstm_state(gates(name, biases[i], at), cells[i])
                later = found[f"{name}/kernel_hh"][at + 1, :, :, 0]
                np.testing.assert_allclose(later, state, atol=1e-5)
                if name == "att_lstm":  # the language LSTM reads it at once
                    read = found["lang_lstm/kernel_ih"][at, :, :, 0, 8:]
                    np.testing.assert_allclose(read, state, atol=1e-5)
                else:
                    read = found["att_lstm/kernel_ih"][at + 1, :, :, 0, :8]
                    np.testing.assert_allclose(read, state, atol=1e-5)
        regions = np.maximum(
            every.regions.features @ params["region_embed"]["kernel"]
            + params["region_embed"]["bias"],
            0,
        )
        attended = found["lang_lstm/kernel_ih"][0, 0, 0, 0, :8]
        low, high = regions[0].min(0) - 1e-5, regions[0].max(0) + 1e-5
        assert ((low <= attended) & (attended <= high)).all()  # a mean of regions
        image = np.maximum(
            every.regions.fc @ params["fc_embed"]["kernel"] + params["fc_embed"]["bias"], 0
        )
        read = found["att_lstm/kernel_ih"][2, :, 1, 0, 8:16]
        np.testing.assert_allclose(read, image, atol=1e-5)
    elif case == "lstm":
        cell = np.zeros((2, 2, 8), np.float32)
        for at in range(4):
            state, cell = lstm_state(gates("lstm", params["lstm"]["bias"], at), cell)
            later = found["lstm/kernel_hh"][at + 1, :, :, 0]
            np.testing.assert_allclose(later, state, atol=1e-5)
    else:
        for at in range(4):
            inputs, state = (found[f"gru_gates/kernel_{p}"][at, :, :, 0] for p in ("ih", "hh"))
            parts = [params[n] for n in ("gru_gates", "gru_candidate")]
            given = [inputs @ part["kernel_ih"] + part["bias"] for part in parts]
            kernels_hh = dict(
                zip(("state", "candidate"), (part["kernel_hh"] for part in parts), strict=True)
            )
            multiply = multiply_by(kernels_hh, "float32")
            after = gru_state(jnp.concatenate(given, -1), jnp.asarray(state), multiply)
            later = found["gru_gates/kernel_hh"][at + 1, :, :, 0]
            np.testing.assert_allclose(later, after, atol=1e-5)
            both = jax.nn.sigmoid(given[0] + state @ parts[0]["kernel_hh"])
            read = found["gru_candidate/kernel_hh"][at, :, :, 0]
            np.testing.assert_allclose(read, both[..., :8] * state, atol=1e-5)
            same = found["gru_candidate/kernel_ih"][at, :, :, 0]
            np.testing.assert_array_equal(same, inputs)


@CASE
def test_padding_counts_nowhere(case):
    """Of regions, and of words after the end."""
    module, params = make(case)
    inputs_of = captioner_inputs(module)
    plain, wider = batch(), batch(regions=7)
    noise = np.where(plain.token_mask, plain.tokens, 5).astype(np.int32)
    grams = [
        {n: np.asarray(gram_of(x, kernels(params, n).shape)) for n, x in found.items()}
        for found in (
            inputs_of(params, given) for given in (plain, wider, plain._replace(tokens=noise))
        )
    ]
    for other in grams[1:]:
        for name, gram in grams[0].items():
            np.testing.assert_allclose(other[name], gram, rtol=1e-4, atol=1e-4, err_msg=name)
    words = grams[0]["embed/embedding" if "embed" in params else "tgt_embed/embedding"]
    real = plain.token_mask[..., 1:]
    expected = np.bincount(plain.tokens[..., :-1][real], minlength=VOCABULARY)
    np.testing.assert_array_equal(words, expected)


@pytest.mark.parametrize("case", ["up_down", "ort"])
def test_log_probs_change_less_than_by_magnitudes(case):
    module, params = make(case)
    batches = [batch(seed) for seed in range(6)]
    errors = {}
    for method in ("magnitude", "sparsegpt"):
        pruned, masks = prune_layers(params, captioner_inputs(module), batches, 0.5, method=method)
        assert by_path(masks).keys() == {*select(params)}
        errors[method] = 0.0
        for given in batches:
            outputs = [
                module.apply({"params": p}, given.regions, given.tokens) for p in (params, pruned)
            ]
            change = np.square(outputs[1] - outputs[0])[given.token_mask]
            errors[method] += float(change.mean())
    assert errors["sparsegpt"] < errors["magnitude"]
