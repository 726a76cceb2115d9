"""Models of the sparse runtime without figures of the reference, against the Linen modules."""

import inspect
import types

import jax
import numpy as np
import pytest
from sparse_cases import random_params, sparse_of

from sparsecap_jax import sparse
from sparsecap_jax.decoding import DecodeOptions, attention_weights, decode, must_contain
from sparsecap_jax.decoding.ensemble import make_ensemble
from sparsecap_jax.errors import CheckpointError, ConfigError
from sparsecap_jax.formulas import lstm_state
from sparsecap_jax.models import abstract_params, make_model
from sparsecap_jax.sparse import entries, layers
from sparsecap_jax.sparse.layers import lstm_advance, lstm_ordered
from sparsecap_jax.sparse.models import SparseEnsemble
from sparsecap_jax.types import Regions

FIELDS = {"vocab_size": 600, "feature_size": 12}
SOFT = {"name": "soft_attention", "embed_size": 8, "rnn_size": 16, "attention_size": 12, **FIELDS}
UP_DOWN = {**SOFT, "name": "up_down"}


def images():
    rng = np.random.default_rng(0)
    mask = np.arange(5) < np.array([[5], [3]])
    features = rng.standard_normal((2, 5, 12)).astype(np.float32) * mask[..., None]
    return Regions(features, mask, np.zeros((2, 5, 4), np.float32), features.mean(axis=1))


def pair(fields, seed=0, density=0.3, **options):
    """A Linen module, params, and the model of the sparse runtime."""
    module = make_model(fields)
    params = random_params(abstract_params(module), density, seed)
    return module, params, sparse_of(module, params, **options)


@pytest.mark.parametrize(
    "search",
    [
        {"method": "greedy"},
        {"method": "sample", "num_samples": 12, "top_k": 30, "top_p": 0.9, "temperature": 1.2},
        {"method": "gumbel", "num_samples": 2},
    ],
)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize(("count", "small"), [(2, 500_000), (1, 0)])  # by scipy, compiled
def test_soft_attention_and_random_searches(monkeypatch, count, small, cell, search):
    monkeypatch.setattr(layers, "_SMALL", small)
    module, params, model = pair({**SOFT, "cell": cell}, form="csr")
    options, rng = DecodeOptions(max_length=9, **search), jax.random.key(5)
    regions = Regions(*(part[:count] for part in images()))
    expected = decode(module, params, regions, options, rng)
    found = sparse.decode(model, regions, options, np.asarray(jax.random.key_data(rng)))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_required_words_prefixes_constraints_and_attention():
    module, params, model = pair(UP_DOWN)
    options = DecodeOptions(
        beam_size=3, max_length=8, no_repeat_ngram=2, min_length=4, suppress=(9,), bad_endings=(5,)
    )
    given = {
        "required": must_contain([[[[17]], [[40, 41], [50]]], []], options),
        "prefix": np.array([[0, 12], [30, 0]], np.int32),
    }
    expected = decode(module, params, images(), options, **given)
    found = sparse.decode(model, images(), options, **given)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    assert (found.tokens[0] == 17).any(axis=-1).all()
    theirs = attention_weights(module, params, images(), found.tokens)
    ours = sparse.attention_weights(model, images(), found.tokens)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("density", [0.05, 0.6])  # words by their entries, or as whole rows
def test_up_down_by_compiled_kernels(monkeypatch, density):
    monkeypatch.setattr(layers, "_SMALL", 0)
    module, params, model = pair(UP_DOWN, density=density)
    assert ("words" in {product.form for product in model.products}) == (density < 0.1)
    for options in (DecodeOptions(method="greedy", max_length=9), DecodeOptions(max_length=9)):
        expected = decode(module, params, images(), options)
        found = sparse.decode(model, images(), options)
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-4)


@pytest.mark.parametrize("method", ["beam", "sample"])
def test_images_split_over_threads_have_the_same_captions(monkeypatch, method):
    _, params, whole = pair(UP_DOWN)
    model = sparse.make_sparse_model(UP_DOWN, params, threads=3)
    regions = Regions(*(np.concatenate([leaf] * 4)[:7] for leaf in images()))
    rng = np.random.default_rng(0)
    regions = regions.replace(features=rng.standard_normal((7, 5, 12)).astype(np.float32))
    rows = {"beam_size" if method == "beam" else "num_samples": 7}
    options = DecodeOptions(method=method, max_length=8, **rows)
    given = {"prefix": np.array([[0], [12], [30], [31], [0], [14], [19]], np.int32)}
    if method == "beam":
        needs = [[[[17]]], [], [[[40, 41], [50]]], [], [[[18]]], [], [[[20]]]]
        given["required"] = must_contain(needs, options)
    else:
        given["rng"] = rng.integers(0, 2**32, (7, 2), np.uint32)
    starts, encode = [], type(model).encode

    def noted(self, part):
        starts.append(len(part.mask))
        return encode(self, part)

    monkeypatch.setattr(type(model), "encode", noted)
    expected = sparse.decode(whole, regions, options, **given)
    monkeypatch.setattr(entries, "_WORTH_A_THREAD_NS", 1)
    found = sparse.decode(model, regions, options, **given)
    assert starts[0] == 7 and sorted(starts[1:]) == [2, 2, 3]
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("batch", "rows", "cost", "expected"),
    [
        (50, 5, 10e6, [0, 12, 25, 37, 50]),
        (50, 5, 2.9e6, [0, 25, 50]),  # a millisecond for each thread
        (8, 5, 10e6, [0, 4, 8]),  # 16 rows for each thread
        (8, 1, 10e6, [0, 8]),
        (1, 99, 10e6, [0, 1]),
        (3, 99, 10e6, [0, 1, 2, 3]),
    ],
)
def test_threads_have_enough_to_do(batch, rows, cost, expected):
    product = types.SimpleNamespace(cost=lambda count: cost * (count == batch * rows))
    model = types.SimpleNamespace(products=[product], threads=4)
    assert entries._spans(model, batch, rows) == expected


def test_gates_are_those_of_the_shared_formula():
    rng = np.random.default_rng(0)
    gates = 3 * rng.standard_normal((2, 3, 64)).astype(np.float32)
    cell = rng.standard_normal((2, 3, 16)).astype(np.float32)
    expected = lstm_state(gates, cell)
    for ours, theirs in zip(lstm_advance(lstm_ordered(gates), cell), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_ensembles():
    members = [pair(UP_DOWN), pair(SOFT, 1)]
    module, params = make_ensemble([(module, params) for module, params, _ in members])
    options = DecodeOptions(beam_size=2, max_length=8)
    expected = decode(module, params, images(), options)
    found = sparse.decode(SparseEnsemble([model for _, _, model in members]), images(), options)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-4)


def test_faults_are_named():
    module, params, _ = pair(UP_DOWN)
    with pytest.raises(ConfigError, match="no sparse runtime for model 'lstm'"):
        sparse.make_sparse_model({"name": "lstm"}, params)
    with pytest.raises(ConfigError, match=r"model.rnn_siz: unknown key; did you mean 'rnn_size'"):
        sparse.make_sparse_model({"name": "up_down", "vocab_size": 3, "rnn_siz": 4}, params)
    with pytest.raises(CheckpointError, match=r"kernel has shape \(12, 16\), .*\(13, 16\)"):
        sparse.make_sparse_model({**UP_DOWN, "feature_size": 13}, params)
    with pytest.raises(CheckpointError, match="weight extra is extra"):
        sparse_of(module, {**params, "extra": np.zeros(2, np.float32)})
    with pytest.raises(CheckpointError, match="weight ctx2att/kernel is missing"):
        sparse_of(module, {key: value for key, value in params.items() if key != "ctx2att"})
    model, options = sparse_of(module, params), DecodeOptions(method="sample")
    for rng, found in ((None, "none"), (np.arange(2), r"int64 \(2,\)")):
        with pytest.raises(ConfigError, match=rf"rng: found {found}, expected uint32 \(2,\)"):
            inspect.unwrap(sparse.decode)(model, images(), options, rng)  # without type checks
    nothing = Regions(*(leaf[:0] for leaf in images()))
    with pytest.raises(ConfigError, match="regions: found no images"):
        sparse.decode(model, nothing, options)
    with pytest.raises(ConfigError, match="regions: found no images"):
        decode(module, params, nothing, options)


def test_an_image_without_regions_or_tokens_to_choose_from_warns_of_nothing():
    module, params, model = pair(UP_DOWN)
    masked = images().replace(mask=np.array([[True] * 5, [False] * 5]))
    options = DecodeOptions(method="greedy", max_length=5)
    found, expected = sparse.decode(model, masked, options), decode(module, params, masked, options)
    np.testing.assert_array_equal(found.tokens[0], expected.tokens[0])
    assert np.isnan(sparse.attention_weights(model, masked, found.tokens)[1]).all()
    options = DecodeOptions(method="sample", max_length=3, top_p=0.9, suppress=range(600))
    found = sparse.decode(model, images(), options, np.array([0, 1], np.uint32))
    assert (found.scores == -np.inf).all()


def test_steps_beyond_the_cache_are_not_a_number():
    fields = {"name": "transformer", "d_model": 8, "ff_size": 8, "num_layers": 1, "num_heads": 2}
    _, _, model = pair({**FIELDS, **fields, "max_seq_length": 3})
    context, found = model.encode(images()), []
    carry = model.init_carry(context, 1)
    for _ in range(4):
        carry, log_probs = model.step(carry, np.full((2, 1), 5), context)
        found.append(np.isnan(log_probs).all())
    assert found == [False, False, False, True]
