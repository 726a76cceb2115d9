"""Defaults of the model interface, for a model that brings the four methods alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.models import (
    MODELS,
    CaptionModel,
    init_params,
    make_model,
    packed_method,
    packs_words,
)
from sparsecap_jax.types import Regions

SHARED = {"vocab_size": 9, "feature_size": 5}
SIZES = {
    "up_down": {"embed_size": 8, "rnn_size": 6, "attention_size": 4},
    "relation_transformer": {"d_model": 8, "ff_size": 6, "num_heads": 2, "num_layers": 2},
    "soft_attention": {"embed_size": 8, "rnn_size": 6, "attention_size": 4},
}


class Four(nn.Module):
    """Adds up embedded tokens and the image, and looks at nothing else."""

    vocab_size: int
    feature_size: int = 5

    def setup(self):
        self.embed = nn.Embed(self.vocab_size, 4)
        self.start = nn.Dense(4)
        self.out = nn.Dense(self.vocab_size)

    def encode(self, regions, *, train=False):
        return {"start": self.start(jnp.asarray(regions.fc))}

    def init_carry(self, context, rows):
        return jnp.repeat(context["start"][:, None], rows, axis=1)

    def step(self, carry, tokens, context, *, train=False):
        carry = carry + self.embed(tokens)
        return carry, jax.nn.log_softmax(self.out(jnp.tanh(carry)))

    def __call__(self, regions, tokens, *, train=False):
        start = self.init_carry(self.encode(regions), tokens.shape[1])[:, :, None]
        states = start + jnp.cumsum(self.embed(tokens), axis=2)
        return jax.nn.log_softmax(self.out(jnp.tanh(states)))


class Inheriting(Four, CaptionModel):
    """The same with the base class."""


@pytest.mark.parametrize("name", ["four", *SIZES])
def test_initial_params_are_those_of_the_models_own_init(name):
    model = Four(9) if name == "four" else make_model({"name": name, **SIZES[name], **SHARED})
    zeros = np.zeros((1, 1, 5), np.float32)
    regions = Regions(zeros, np.ones((1, 1), bool), zeros[..., :4], zeros[0])
    inputs = (regions, np.zeros((1, 1, 2), np.int32))
    expected = jax.jit(model.init)(jax.random.key(3), *inputs)["params"]
    found = init_params(model, jax.random.key(3))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


class Standardized(Four):
    """Its first parameter is the image's mean."""

    @nn.compact
    def __call__(self, regions, tokens, *, train=False):
        mean = self.param("mean", lambda rng: jnp.mean(jnp.asarray(regions.fc)))
        return super().__call__(regions, tokens) + mean


class Constant(Four):
    """Its only parameter is drawn from nothing."""

    @nn.compact
    def __call__(self, regions, tokens, *, train=False):
        bias = self.param("bias", nn.initializers.constant(0.5), (self.vocab_size,))
        return jnp.zeros((*jnp.shape(tokens), 1)) + bias


def test_initial_params_need_no_rng():
    params = init_params(Constant(9), jax.random.key(0))
    np.testing.assert_array_equal(params["bias"], np.full(9, 0.5, np.float32))


def test_initial_params_depend_on_the_rng_alone():
    message = "^model: initial parameters of Standardized depend on regions or tokens; expected"
    with pytest.raises(ConfigError, match=message):
        init_params(Standardized(9), jax.random.key(0))


@pytest.mark.parametrize("cls", [Four, Inheriting])
def test_the_default_of_packed_words_is_teacher_forcing_at_their_places(cls):
    rng = np.random.default_rng(0)
    zeros = np.zeros((2, 3, 5), np.float32)
    fc = rng.normal(size=(2, 5)).astype(np.float32)
    regions = Regions(zeros, np.ones((2, 3), bool), zeros[..., :4], fc)
    tokens = rng.integers(0, 7, (2, 3, 6)).astype(np.int32)
    seen = np.arange(6) < rng.integers(1, 7, (2, 3, 1))
    model, count = cls(7), int(seen.sum())
    variables = model.init(jax.random.key(0), regions, tokens)

    def packed(variables, size):
        context = model.apply(variables, regions, method="encode")
        method = packed_method(model)
        return model.apply(variables, context, tokens, seen, size, method=method)

    def loss(variables):
        return jnp.sum(jnp.sin(packed(variables, count)[0]))

    log_probs, places = packed(variables, count + 2)
    whole = np.asarray(model.apply(variables, regions, tokens)).reshape(-1, 7)
    np.testing.assert_array_equal(places, [*np.flatnonzero(seen), 36, 36])
    np.testing.assert_allclose(log_probs[:count], whole[seen.reshape(-1)], atol=1e-6)
    assert np.isnan(packed(variables, count - 1)[0]).all()

    def whole_loss(variables):
        return jnp.sum(jnp.sin(model.apply(variables, regions, tokens)), where=seen[..., None])

    grads, expected = jax.grad(loss)(variables), jax.grad(whole_loss)(variables)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, expected)
    assert not packs_words(model)


def test_the_packages_models_pack_words():
    assert all(packs_words(make_model({"name": name, "vocab_size": 9})) for name in MODELS)


def test_entries_that_are_no_modules_are_refused(monkeypatch):
    monkeypatch.setitem(MODELS._entries, "wrong", dict)
    with pytest.raises(ConfigError, match=r"model.name is 'wrong'; expected a subclass of flax"):
        make_model({"name": "wrong", "vocab_size": 9})
