"""What the recurrent models share: scheduled sampling, mixed precision, recomputation."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.models import abstract_params, make_model
from sparsecap_jax.types import Regions

SIZES = {"feature_size": 7, "embed_size": 6, "rnn_size": 8, "attention_size": 9}
MODELS = {
    "up_down": {"name": "up_down", "logit_layers": 2},
    "lstm": {"name": "soft_attention"},
    "gru": {"name": "soft_attention", "cell": "gru"},
}
VOCAB = 11


def small_model(kind, dropout=0.0, **fields):
    """A model with random params and inputs: 2 images, 3 rows, 4 regions, 6 tokens."""
    rates = {"dropout": dropout}
    if kind != "up_down":
        rates["attention_dropout"] = dropout
    model = make_model({**MODELS[kind], "vocab_size": VOCAB, **SIZES, **rates, **fields})
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0.0, 0.4, leaf.shape).astype(np.float32)),
        abstract_params(model),
    )
    mask = np.arange(4) < np.array([[4], [2]])
    features = rng.normal(size=(2, 4, 7)).astype(np.float32) * mask[..., None]
    regions = Regions(features, mask, np.zeros((2, 4, 4), np.float32), features.mean(axis=1))
    return model, params, regions, rng.integers(0, VOCAB, (2, 3, 6)).astype(np.int32)


@pytest.fixture(scope="module", params=["up_down", "gru"])
def kind(request):
    return request.param


@functools.partial(jax.jit, static_argnums=0, static_argnames=("train", "mutable"))
def apply(model, params, regions, tokens, **options):
    return model.apply({"params": params}, regions, tokens, **options)


def rngs():
    return {"dropout": jax.random.key(0), "sampling": jax.random.key(1)}


def test_without_replacements_sampling_is_teacher_forcing():
    model, params, regions, tokens = small_model("lstm")
    options = {"train": True, "rngs": rngs()}
    ours = apply(model, params, regions, tokens, sample_prob=np.float32(0.0), **options)
    expected = apply(model, params, regions, tokens)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_sampled_inputs_are_what_the_model_is_fed(kind):
    """The sown inputs, fed by plain teacher forcing, give the same log-probs."""
    model, params, regions, tokens = small_model(kind)
    options = {"train": True, "sample_prob": np.float32(0.5), "rngs": rngs()}
    log_probs, sown = apply(model, params, regions, tokens, mutable="intermediates", **options)
    (inputs,) = sown["intermediates"]["inputs"]
    np.testing.assert_array_equal(inputs[..., 0], tokens[..., 0])  # BOS is never replaced
    replaced = (np.asarray(inputs) != tokens)[..., 1:].mean()
    assert 0.2 < replaced < 0.75  # half of 30, one in eleven by the same token
    again = apply(model, params, regions, inputs)
    np.testing.assert_allclose(log_probs, again, atol=1e-5)


def test_replacements_follow_the_models_distribution():
    model, params, regions, tokens = small_model("up_down")
    wide = np.broadcast_to(tokens[:, :1, :2], (2, 4000, 2))
    options = {"train": True, "sample_prob": np.float32(1.0), "rngs": rngs()}
    log_probs, sown = apply(model, params, regions, wide, mutable="intermediates", **options)
    (inputs,) = sown["intermediates"]["inputs"]
    for image in range(2):
        drawn = np.bincount(np.asarray(inputs)[image, :, 1], minlength=VOCAB) / 4000
        expected = np.exp(log_probs[image, 0, 0])
        assert np.abs(drawn - expected).max() < 4 * np.sqrt(0.25 / 4000)


def training_loss(params, model, regions, tokens):
    """Mean of one log-prob per word with dropout, and all log-probs."""
    options = {"train": True, "rngs": rngs()}
    log_probs = model.apply({"params": params}, regions, tokens, **options)
    return -jnp.mean(log_probs[..., 3]), log_probs


@pytest.fixture(scope="module")
def exact(kind):
    """A model with its params and inputs, and loss, log-probs and gradients in float32."""
    model, params, *inputs = small_model(kind, dropout=0.3)
    return model, params, inputs, run(params, model, *inputs)


def run(params, model, *inputs):
    grad_fn = jax.value_and_grad(training_loss, has_aux=True)
    return jax.jit(grad_fn, static_argnums=1)(params, model, *inputs)


def test_remat_changes_neither_loss_nor_gradients(exact):
    model, params, inputs, ((loss, _), grads) = exact
    spared = model.clone(remat=True)
    (found, _), found_grads = run(params, spared, *inputs)
    np.testing.assert_allclose(found, loss, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found_grads, grads)

    def saves_attention(model):
        """Whether the backward pass is handed the hidden layer, [B, K, R, A] of every step."""
        grad_fn = jax.grad(training_loss, has_aux=True)
        jaxpr = jax.make_jaxpr(grad_fn, static_argnums=1)(params, model, *inputs)
        return "f32[6,2,3,4,9]" in str(jaxpr)

    assert saves_attention(model) and not saves_attention(spared)


def test_bfloat16_changes_the_loss_little_and_leaves_float32_outside_of_products(exact):
    model, params, inputs, ((loss, log_probs), grads) = exact
    half = model.clone(compute_dtype="bfloat16")
    (found, rounded), found_grads = run(params, half, *inputs)
    float32 = {np.dtype(np.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(found_grads)} == float32
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract_params(half))} == float32
    assert rounded.dtype == found.dtype == np.float32
    error = np.abs(rounded - log_probs).max()
    assert 1e-4 < error < 16 * 2.0**-8  # a few roundings to 8 bits of values of about 1
    np.testing.assert_allclose(found, loss, rtol=0.01)
    difference = jax.tree.map(jnp.subtract, found_grads, grads)
    assert optax.tree.norm(difference) < 0.05 * optax.tree.norm(grads)
    # The softmax is float32: probabilities sum to 1 as exactly as ever.
    np.testing.assert_allclose(np.exp(rounded).sum(axis=-1), 1.0, atol=1e-5)


def test_bfloat16_reaches_every_product_forward_and_backward(kind):
    """Autodiff alone would multiply gradients in float32."""
    model, params, *inputs = small_model(kind, compute_dtype="bfloat16")
    jaxpr = jax.make_jaxpr(jax.grad(training_loss, has_aux=True), static_argnums=1)
    found = list(_products(jaxpr(params, model, *inputs).jaxpr))
    assert len(found) > 20
    assert {operand.dtype for operands, _, _ in found for operand in operands} == {
        np.dtype(jnp.bfloat16)
    }
    assert {result.dtype for _, result, _ in found} == {np.dtype(np.float32)}


def _products(jaxpr, looped=False):
    """Operands and result of all matrix products, and whether they are within a loop."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield [one.aval for one in equation.invars], equation.outvars[0].aval, looped
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from _products(inner, looped or equation.primitive.name == "scan")


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("remat", [False, True])
def test_gradients_after_the_loop_are_those_of_autodiff(kind, remat):
    """Scheduled sampling that replaces nothing takes autodiff's way through the same model."""
    model, params, regions, tokens = small_model(kind, remat=remat)

    def loss(params, **options):
        log_probs = model.apply({"params": params}, regions, tokens, rngs=rngs(), **options)
        return jnp.mean(log_probs * np.cos(np.arange(log_probs.size)).reshape(log_probs.shape))

    late = jax.jit(jax.grad(loss))(params)
    expected = jax.jit(jax.grad(lambda params: loss(params, sample_prob=jnp.float32(0))))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), late, expected)


@pytest.mark.parametrize("kind", MODELS)
def test_no_kernel_of_the_recurrence_gets_its_gradient_within_the_loop(kind):
    model, params, *inputs = small_model(kind)
    jaxpr = jax.make_jaxpr(jax.grad(training_loss, has_aux=True), static_argnums=1)
    found = list(_products(jaxpr(params, model, *inputs).jaxpr))
    widest = 4 * 8 if kind != "gru" else 2 * 8  # of the gates: no other results are as wide
    shapes = [(result.shape, looped) for _, result, looped in found if result.ndim == 2]
    assert not [shape for shape, looped in shapes if looped and widest in shape]
    assert (8, widest) in [shape for shape, looped in shapes if not looped]


def test_unknown_compute_dtype_is_named(kind):
    with pytest.raises(
        ConfigError, match=r"model.compute_dtype is 'float16'; .*valid: bfloat16, float32"
    ):
        small_model(kind, compute_dtype="float16")
