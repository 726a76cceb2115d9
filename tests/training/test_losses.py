import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsecap_jax.training.losses import caption_loss, cross_entropy, reward_loss
from sparsecap_jax.types import Batch, Regions

CASES = ["equal", "input_longer", "input_shorter"]


@pytest.fixture
def case(golden):
    return golden("losses_pruning/losses.npz")


def smoothed_by_hand(log_probs, targets, mask, s):
    """Loops over tokens and vocabulary, in float64."""
    length, vocab = min(log_probs.shape[1], targets.shape[1]), log_probs.shape[2]
    total = 0.0
    for row in range(len(targets)):
        for t in range(length):
            for v in range(vocab):
                q = 1 - s if v == targets[row, t] else s / (vocab - 1)
                if q > 0:
                    total += mask[row, t] * q * (np.log(q) - log_probs[row, t, v])
    return total / mask[:, :length].sum()


@pytest.mark.parametrize("name", CASES)
def test_cross_entropy_equals_the_reference(case, name):
    logits, target, mask = (case[f"xe/{name}/{key}"] for key in ("logits", "target", "mask"))

    def loss(logits):
        return cross_entropy(jax.nn.log_softmax(logits), target, mask)

    value, grad = jax.value_and_grad(loss)(jnp.asarray(logits))
    np.testing.assert_allclose(value, case[f"xe/{name}/loss"], rtol=1e-6)
    np.testing.assert_allclose(grad, case[f"xe/{name}/grad_logits"], rtol=1e-4, atol=1e-8)
    log_probs = jax.nn.log_softmax(jnp.asarray(logits))
    grad = jax.grad(lambda lp: cross_entropy(lp, target, mask))(log_probs)
    np.testing.assert_allclose(grad, case[f"xe/{name}/grad_logprobs"], rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.2])
@pytest.mark.parametrize("name", ["equal", "input_shorter"])
def test_label_smoothing_equals_the_reference(case, name, smoothing):
    logits, target, mask = (case[f"xe/{name}/{key}"] for key in ("logits", "target", "mask"))

    def loss(logits):
        return cross_entropy(jax.nn.log_softmax(logits), target, mask, smoothing)

    value, grad = jax.value_and_grad(loss)(jnp.asarray(logits))
    key = f"label_smoothing_{smoothing}/{name}"
    np.testing.assert_allclose(value, case[f"{key}/loss"], rtol=1e-6)
    np.testing.assert_allclose(grad, case[f"{key}/grad_logits"], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("smoothing", [0.1, 0.3])
def test_label_smoothing_with_more_outputs_than_targets(case, smoothing):
    """Up-Down's outputs are one longer than its targets; the reference fails there."""
    logits, target, mask = (case[f"xe/input_longer/{key}"] for key in ("logits", "target", "mask"))
    log_probs = jax.nn.log_softmax(jnp.asarray(logits))
    expected = smoothed_by_hand(np.asarray(log_probs, np.float64), target, mask, smoothing)
    value = cross_entropy(log_probs, target, mask, smoothing)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_what_the_mask_hides_may_be_infinite():
    log_probs = jnp.log(jnp.array([[[0.5, 0.5], [1.0, 0.0]]], jnp.float32))
    targets, mask = jnp.array([[0, 1]], jnp.int32), jnp.array([[True, False]])
    value, grad = jax.value_and_grad(cross_entropy)(log_probs, targets, mask)
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    np.testing.assert_array_equal(grad, [[[-1, 0], [0, 0]]])


def test_an_empty_mask_gives_zero():
    log_probs = jnp.full((2, 3, 4), -1.0, jnp.float32)
    targets, mask = jnp.zeros((2, 3), jnp.int32), jnp.zeros((2, 3), bool)
    assert float(cross_entropy(log_probs, targets, mask)) == 0.0
    assert float(reward_loss(log_probs[..., 0], jnp.ones(2, jnp.float32), mask)) == 0.0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_caption_loss_shifts_tokens_by_one(case, smoothing):
    """Fed whole captions, it equals the reference on shifted targets; fill-up rows do not count."""
    logits, target, mask = (case[f"xe/input_longer/{key}"] for key in ("logits", "target", "mask"))
    rows, length = target.shape
    tokens = np.full((rows + 2, length + 1), 2, np.int32)
    tokens[:rows, 1:] = target
    token_mask = np.zeros((rows + 2, length + 1), bool)
    token_mask[:rows, 0], token_mask[:rows, 1:] = True, mask > 0
    log_probs = np.zeros((rows + 2, length + 1, logits.shape[-1]), np.float32)
    log_probs[:rows] = jax.nn.log_softmax(jnp.asarray(logits))
    shape = (4, 2, length + 1)
    batch = Batch(
        Regions(None, None, None, None),
        jnp.asarray(tokens.reshape(shape)),
        jnp.asarray(token_mask.reshape(shape)),
        jnp.arange(4, dtype=jnp.int32),
    )
    value = caption_loss(jnp.asarray(log_probs.reshape(*shape, -1)), batch, smoothing)
    expected = case["xe/input_longer/loss"]
    if smoothing:
        expected = smoothed_by_hand(np.asarray(log_probs[:rows], float), target, mask, smoothing)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["reward", "reward_emptyrow"])
def test_reward_loss_equals_the_reference(case, name):
    log_probs = jnp.asarray(case["reward/logprobs"])  # [6, 4, 9]
    mask = jnp.asarray(case[f"{name}/mask"]).reshape(log_probs.shape)
    rewards = jnp.asarray(case["reward/reward"]).reshape(log_probs.shape[:2])
    value, grad = jax.value_and_grad(reward_loss)(log_probs, rewards, mask)
    np.testing.assert_allclose(value, case[f"{name}/loss"], rtol=1e-5)
    np.testing.assert_allclose(grad, case[f"{name}/grad_logprobs"], rtol=1e-6)


def test_no_one_hot_is_made():
    """The forward pass holds nothing of the log-probs' size beside themselves."""
    rows, vocab = (4, 5, 18), 1000
    arguments = (
        jax.ShapeDtypeStruct((*rows, vocab), jnp.float32),
        jax.ShapeDtypeStruct(rows, jnp.int32),
        jax.ShapeDtypeStruct(rows, bool),
    )
    for smoothing in (0.0, 0.1):
        loss = jax.jit(lambda lp, t, m, s=smoothing: cross_entropy(lp, t, m, s))
        memory = loss.lower(*arguments).compile().memory_analysis()
        assert memory.temp_size_in_bytes < 4 * 5 * 18 * vocab * 4 / 10
