"""REINFORCE against the exact expected reward of a model whose captions can all be listed."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from sparsecap_jax.models import init_params, make_model
from sparsecap_jax.training.policy_gradient import PolicyGradient, Samples, split_floats
from sparsecap_jax.types import Regions

VOCAB, LENGTH, BOS, EOS = 5, 3, 2, 3


def every_caption():
    """All token sequences that a search can return: up to EOS, or LENGTH tokens without one."""
    found = []
    for length in range(1, LENGTH + 1):
        ends = [EOS] if length < LENGTH else range(VOCAB)
        others = [token for token in range(VOCAB) if token != EOS]
        found += [
            (*start, end) for start in itertools.product(others, repeat=length - 1) for end in ends
        ]
    return found


def test_gradient_equals_finite_differences_of_the_expected_reward():
    captions = every_caption()
    assert len(captions) == 1 + 4 + 16 * 5  # EOS; xEOS; xx and anything
    sizes = {"embed_size": 4, "rnn_size": 5, "attention_size": 3, "dropout": 0.0}
    model = make_model({"name": "up_down", "vocab_size": VOCAB, "feature_size": 6, **sizes})
    rng = np.random.default_rng(0)
    features = rng.normal(size=(1, 2, 6)).astype(np.float32)
    boxes = np.zeros((1, 2, 4), np.float32)
    regions = Regions(features, np.ones((1, 2), bool), boxes, features.mean(axis=1))
    lengths = np.array([len(caption) for caption in captions])
    tokens = np.zeros((1, len(captions), LENGTH), np.int32)
    for row, caption in zip(tokens[0], captions, strict=True):
        row[: len(caption)] = caption
    inside = np.arange(LENGTH) < lengths[None, :, None]
    inputs = np.concatenate([np.full_like(tokens[..., :1], BOS), tokens[..., :-1]], axis=-1)
    params = init_params(model, jax.random.key(1))
    params = jax.tree.map(lambda leaf: leaf * 2, params)
    rewards = rng.random(len(captions))
    baseline = 0.3

    def probabilities(params):
        log_probs = jnp.take_along_axis(
            model.apply({"params": params}, regions, inputs), tokens[..., None], axis=-1
        )[..., 0]
        return jnp.exp(jnp.sum(jnp.where(inside, log_probs, 0), axis=-1))[0]

    probability = np.asarray(jax.jit(probabilities)(params), np.float64)
    np.testing.assert_allclose(probability.sum(), 1, rtol=1e-5)

    # The expected gradient: every caption once, its advantage times its probability. The loss is a
    # mean over all tokens, the expectation a sum over captions.
    advantages = (probability * (rewards - baseline))[None].astype(np.float32)
    policy = PolicyGradient(model, BOS)
    samples = Samples(tokens, inside, np.zeros(inside.shape, np.float32), advantages)

    @jax.jit
    def reinforce(params):
        def encode(params):
            return split_floats(model.apply({"params": params}, regions, method="encode"))

        floats, pull, others = jax.vjp(encode, params, has_aux=True)
        _, (grads, context_grads), _ = policy(params, floats, others, samples)
        return jax.tree.map(jnp.add, grads, *pull(context_grads))

    scale = -float(lengths.sum())
    gradient = jax.tree.map(lambda leaf: scale * np.asarray(leaf), reinforce(params))

    expected = jax.jit(lambda params: jnp.dot(probabilities(params), rewards.astype(np.float32)))
    for number in range(6):
        direction = jax.tree.map(
            lambda leaf, n=number: np.random.default_rng(n).normal(size=leaf.shape).astype("f4"),
            params,
        )
        size = 1e-2
        ahead, behind = (
            float(expected(jax.tree.map(lambda leaf, d, s=s: leaf + s * d, params, direction)))
            for s in (size, -size)
        )
        along = sum(
            float(np.vdot(ours, ahead_))
            for ours, ahead_ in zip(
                jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True
            )
        )
        np.testing.assert_allclose(along, (ahead - behind) / (2 * size), rtol=2e-3, atol=2e-4)
