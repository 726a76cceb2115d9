"""Searching encoded images inside a function that is compiled and differentiated."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoding_fakes import EOS, UNOPTIMIZED, fast_decode
from test_ensemble import real_regions, teacher_forced, up_down

from sparsecap_jax.decoding import DecodeOptions, decode_encoded
from sparsecap_jax.errors import ConfigError

LENGTH = 4
SAMPLES = DecodeOptions(method="sample", num_samples=4, max_length=LENGTH)
GREEDY = DecodeOptions(method="greedy", max_length=LENGTH)
BEAMS = DecodeOptions(beam_size=3, max_length=LENGTH)


def replayed(model, params, context, tokens, dropout_rng):
    """Log-probs of `tokens [B, K, T]` by a plain loop of steps with the search's own noise."""
    variables = {"params": params}
    carry = model.apply(variables, context, 1, method="init_carry")
    fed = jnp.full((tokens.shape[0], 1), 2, jnp.int32)
    found = []
    for t in range(LENGTH):
        rngs = {"dropout": jax.random.fold_in(dropout_rng, t)}
        carry, log_probs = model.apply(
            variables, carry, fed, context, train=True, rngs=rngs, method="step"
        )
        if t == 0:
            repeat = functools.partial(jnp.repeat, repeats=tokens.shape[1], axis=1)
            carry, log_probs = jax.tree.map(repeat, (carry, log_probs))
        fed = tokens[:, :, t]
        found.append(jnp.take_along_axis(log_probs, fed[..., None], axis=2)[..., 0])
    ended = jnp.cumsum(tokens == EOS, axis=-1) - (tokens == EOS)
    return jnp.where(ended > 0, 0.0, jnp.stack(found, axis=-1))


def test_samples_in_train_mode_have_the_log_probs_of_a_pass_with_their_noise():
    """A self-critical step in small: encode once, sample, take gradients of the samples."""
    model, params = up_down(0, 7)
    regions = real_regions(3, 4)

    def loss(params, rng, weight):
        context = model.apply(
            {"params": params}, regions, train=True, rngs={"dropout": rng}, method="encode"
        )
        noise = jax.random.fold_in(rng, 1)
        sampled = decode_encoded(model, params, context, SAMPLES, rng, dropout_rng=noise)
        log_probs = replayed(model, params, context, sampled.tokens, noise)
        baseline = decode_encoded(model, params, context, GREEDY)
        return weight * jnp.sum(log_probs) - jnp.sum(baseline.scores), (sampled, log_probs)

    step = jax.jit(jax.grad(loss, has_aux=True), compiler_options=UNOPTIMIZED)
    grads, (sampled, log_probs) = step(params, jax.random.key(3), 1.0)
    np.testing.assert_allclose(sampled.log_probs, log_probs, atol=1e-5)
    assert np.unique(np.asarray(sampled.lengths)).size > 1
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads)) > 0.1
    # Nothing of the gradient comes through the searches.
    without, _ = step(params, jax.random.key(3), 0.0)
    assert not any(np.abs(leaf).any() for leaf in jax.tree.leaves(without))
    # Without dropout the same tokens have other log-probs.
    bos = np.full((*sampled.tokens.shape[:2], 1), 2, np.int32)
    fed = np.concatenate([bos, sampled.tokens[:, :, :-1]], axis=2)
    calm = teacher_forced(model, params, regions, fed)
    calm = np.take_along_axis(np.asarray(calm), np.asarray(sampled.tokens)[..., None], axis=3)
    assert np.abs(calm[:, :, 0, 0] - log_probs[:, :, 0]).max() > 0.1


def test_encoded_images_give_the_beams_of_the_images():
    model, params = up_down(1, 7)
    regions = real_regions(3, 4)

    def candidates(params, regions):
        context = model.apply({"params": params}, regions, method="encode")
        return decode_encoded(model, params, context, BEAMS)

    found = jax.jit(candidates, compiler_options=UNOPTIMIZED)(params, regions)
    expected = fast_decode(model, params, regions, BEAMS)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-6)


def test_arguments_for_another_number_of_images_are_refused():
    model, params = up_down(0, 7)
    context = model.apply({"params": params}, real_regions(2, 3), method="encode")
    with pytest.raises(ConfigError, match="prefix: found 3 images, expected 2"):
        decode_encoded(model, params, context, BEAMS, prefix=np.zeros((3, 1), np.int32))
