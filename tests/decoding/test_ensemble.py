"""Ensembles and attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoding_fakes import (
    UNOPTIMIZED,
    HashModel,
    SlowModel,
    captions_of,
    fast_decode,
    images,
    random_table,
)
from flax import linen as nn

from sparsecap_jax.decoding import DecodeOptions, attention_weights, decode, make_ensemble
from sparsecap_jax.decoding.stepper import reorder
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.models import abstract_params, make_model

VOCAB = 9
STARTS = np.arange(6) * 13


def hash_members(count):
    tables = [random_table(seed, VOCAB, ties=False, num_states=53 + seed) for seed in range(count)]
    members = [(HashModel(VOCAB, len(table)), {"table": jnp.asarray(table)}) for table in tables]
    return members, tables


def test_the_mean_of_probabilities_decides():
    members, tables = hash_members(3)
    model, params = make_ensemble(members)
    options = DecodeOptions(method="greedy", max_length=7)
    decoded = fast_decode(model, params, images(STARTS), options)
    for image, start in enumerate(STARTS):
        slow = [SlowModel(table, int(start)) for table in tables]
        prefix, history = [], []
        while len(prefix) < 7 and 3 not in prefix:
            mean = np.mean([np.exp(np.float64(one(prefix))) for one in slow], axis=0)
            prefix.append(int(mean.argmax()))
            history.append(np.log(mean.max()))
        assert captions_of(decoded, image) == [tuple(prefix)]
        found = decoded.log_probs[image, 0, : len(prefix)]
        np.testing.assert_allclose(found, history, rtol=1e-5)


def test_an_ensemble_of_one_model_twice_is_the_model():
    (member,), _ = hash_members(1)
    options = DecodeOptions(beam_size=3, max_length=7)
    alone = fast_decode(*member, images(STARTS), options)
    twice = fast_decode(*make_ensemble([member, member]), images(STARTS), options)
    np.testing.assert_array_equal(twice.tokens, alone.tokens)
    np.testing.assert_allclose(twice.scores, alone.scores, rtol=1e-5)


def up_down(seed, rnn):
    model = make_model(
        {"name": "up_down", "vocab_size": VOCAB, "feature_size": 6, "embed_size": 5}
        | {"rnn_size": rnn, "attention_size": 4}
    )
    rng = np.random.default_rng(seed)
    shapes = abstract_params(model)
    return model, jax.tree.map(lambda leaf: np.float32(rng.normal(size=leaf.shape)), shapes)


def real_regions(images_, regions):
    rng = np.random.default_rng(0)
    template = images(np.zeros(images_))
    features = rng.normal(size=(images_, regions, 6)).astype(np.float32)
    mask = np.arange(regions) < rng.integers(1, regions + 1, (images_, 1))
    features *= mask[..., None]
    boxes = np.zeros((images_, regions, 4), np.float32)
    return template.replace(features=features, mask=mask, boxes=boxes, fc=features[:, 0])


@functools.partial(jax.jit, static_argnums=0, compiler_options=UNOPTIMIZED)
def teacher_forced(model, params, regions, tokens):
    return model.apply({"params": params}, regions, tokens)


@functools.partial(jax.jit, static_argnums=0, compiler_options=UNOPTIMIZED)
def sown_attention(model, params, regions, tokens):
    """What the last step over `tokens [B, K, T]` sows, by a loop of steps."""
    variables = {"params": params}
    context = model.apply(variables, regions, method="encode")
    carry = model.apply(variables, context, tokens.shape[1], method="init_carry")
    for place in range(tokens.shape[2]):
        (carry, _), sown = model.apply(
            variables, carry, tokens[:, :, place], context, method="step", mutable=["intermediates"]
        )
    return sown["intermediates"]["attention"]["attention"][0]


def test_different_architectures_join():
    members = [up_down(0, 7), up_down(1, 5), hash_members(1)[0][0]]
    model, params = make_ensemble(members)
    regions = real_regions(4, 3)
    options = DecodeOptions(beam_size=3, max_length=6)
    decoded = fast_decode(model, params, regions, options)
    for caption in np.asarray(decoded.tokens)[:, :1]:
        assert len(set(caption[0].tolist())) > 1
    # Scores are those of the members' teacher forcing.
    tokens = np.concatenate([np.full((4, 3, 1), 2, np.int32), decoded.tokens[:, :, :-1]], axis=2)
    probs = [np.exp(teacher_forced(m, p, regions, tokens)) for m, p in members[:2]]
    table = np.asarray(members[2][1]["table"])
    start = np.asarray(regions.fc)[:, 0].astype(np.int32)
    hashed = np.zeros_like(probs[0])
    for b in range(4):
        for k in range(3):
            for t in range(6):
                prefix = np.asarray(decoded.tokens)[b, k, :t]
                hashed[b, k, t] = np.exp(SlowModel(table, int(start[b]))(prefix))
    mean = np.log((probs[0] + probs[1] + hashed) / 3)
    expected = np.take_along_axis(mean, np.asarray(decoded.tokens)[..., None], axis=3)[..., 0]
    inside = np.arange(6) < np.asarray(decoded.lengths)[..., None]
    np.testing.assert_allclose(decoded.log_probs, np.where(inside, expected, 0), atol=1e-5)


def test_different_vocabularies_do_not_join():
    members = [(HashModel(5), {}), (HashModel(7), {})]
    with pytest.raises(ConfigError, match=r"vocab_size: found \[5, 7\]"):
        make_ensemble(members)


def test_attention_is_the_models_own():
    model, params = up_down(0, 7)
    regions = real_regions(3, 5)
    options = DecodeOptions(beam_size=2, max_length=4)
    decoded = fast_decode(model, params, regions, options)
    weights = np.asarray(attention_weights(model, params, regions, decoded.tokens))
    assert weights.shape == (3, 2, 4, 5)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    assert not weights[~np.broadcast_to(regions.mask[:, None, None], weights.shape)].any()
    fed = np.concatenate([np.full((3, 2, 1), 2, np.int32), decoded.tokens[:, :, :-1]], axis=2)
    for place in (0, 3):
        expected = sown_attention(model, params, regions, fed[:, :, : place + 1])
        np.testing.assert_allclose(weights[:, :, place], expected, atol=1e-6)
    assert np.ptp(weights[regions.mask.all(1)], axis=2).max() > 1e-3


def test_attention_of_an_ensemble_is_the_mean():
    members = [up_down(0, 7), up_down(1, 5)]
    regions, tokens = real_regions(3, 5), np.full((3, 1, 2), 4, np.int32)
    single = [attention_weights(*member, regions, tokens) for member in members]
    together = attention_weights(*make_ensemble(members), regions, tokens)
    np.testing.assert_allclose(together, (single[0] + single[1]) / 2, atol=1e-6)


def test_models_without_attention_say_so():
    (member,), _ = hash_members(1)
    with pytest.raises(ConfigError, match="found none in a step of HashModel"):
        attention_weights(*member, images([0]), np.zeros((1, 1, 2), np.int32))


def test_reorder_takes_rows_of_every_leaf():
    rng = np.random.default_rng(0)
    carry = {"a": rng.normal(size=(2, 3, 4, 5)), "b": [rng.integers(0, 9, (2, 3))]}
    parents = np.array([[2, 2, 0], [1, 0, 1]], np.int32)
    found = reorder(jax.tree.map(jnp.asarray, carry), jnp.asarray(parents))
    for b, k in np.ndindex(2, 3):
        np.testing.assert_allclose(found["a"][b, k], carry["a"][b, parents[b, k]], rtol=1e-6)
        assert found["b"][0][b, k] == carry["b"][0][b, parents[b, k]]


class Limited(nn.Module):
    """A model whose cache has room for so many tokens."""

    vocab_size: int
    max_seq_length: int

    def encode(self, regions, train):
        return {}


def test_longer_captions_than_the_model_can_hold_are_refused():
    with pytest.raises(ConfigError, match=r"max_length: found 9, expected at most .* 8"):
        decode(Limited(5, 8), {}, images([0]), DecodeOptions(max_length=9))
