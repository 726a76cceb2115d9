"""The training step: packed words give the padded loss and gradients, on one device and on more."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from sparsecap_jax.models import MODELS, init_params, make_model
from sparsecap_jax.pruning import make_pruner
from sparsecap_jax.pruning.step import SparseStep, TrainState, by_entry
from sparsecap_jax.training.objectives import CrossEntropy, Objective, Task, words_to_pack
from sparsecap_jax.training.optimizers import make_optimizer
from sparsecap_jax.training.sharding import make_mesh
from sparsecap_jax.training.steps import fault_names, make_train_step, suspects
from sparsecap_jax.types import Batch, Regions

LSTM = {"embed_size": 8, "rnn_size": 12, "attention_size": 6}
TRANSFORMER = {"d_model": 16, "ff_size": 24, "num_layers": 1, "num_heads": 2}
NO_DROPOUT = {
    "up_down": {**LSTM, "dropout": 0.0},
    "soft_attention": {**LSTM, "dropout": 0.0, "attention_dropout": 0.0},
    "transformer": {**TRANSFORMER, "dropout": 0.0, "source_dropout": 0.0},
    "relation_transformer": {**TRANSFORMER, "dropout": 0.0, "source_dropout": 0.0},
}
# Real tokens of 2 captions for each of 4 images, BOS included; 0 fills the batch up.
LENGTHS = [[9, 4], [5, 0], [7, 6], [2, 9]]


def make_batch():
    rng = np.random.default_rng(0)
    mask = np.arange(9) < np.array(LENGTHS)[..., None]
    tokens = np.where(mask, rng.integers(4, 20, mask.shape), 0).astype(np.int32)
    tokens[..., 0] = np.where(mask[..., 0], 2, 0)
    valid = np.arange(5) < np.array([5, 3, 4, 1])[:, None]
    features = (rng.normal(size=(4, 5, 10)) * valid[..., None]).astype(np.float32)
    boxes = np.sort(rng.random((4, 5, 2, 2)), axis=2).reshape(4, 5, 4).astype(np.float32)
    regions = Regions(features, valid, boxes, features.mean(axis=1))
    return Batch(regions, tokens, mask, np.arange(4, dtype=np.int32))


def make_parts(name, **fields):
    fields = {"vocab_size": 20, "feature_size": 10, **NO_DROPOUT[name], **fields}
    model = make_model({"name": name, **fields})
    pruner = make_pruner({"name": "none"}, total_steps=10)
    params = init_params(model, jax.random.key(1))
    state = TrainState(
        jax.numpy.int32(0), params, pruner.init(jax.random.key(2), params), None, jax.random.key(3)
    )
    return model, pruner, make_batch(), state


def test_no_dropout_is_listed_for_every_model():
    assert set(NO_DROPOUT) == set(MODELS)


# Words counted by hand from LENGTHS: 8+3 + 4+0 + 6+5 + 1+8 = 35 of 64; by halves: 15 and 20.
@pytest.mark.parametrize(
    ("name", "label_smoothing", "shards", "words"),
    [
        ("soft_attention", 0.0, 1, 36),
        ("transformer", 0.1, 1, 36),
        ("relation_transformer", 0.0, 2, 20),
        ("up_down", 0.1, 2, 20),
    ],
)
def test_packed_words_give_the_padded_loss_and_gradients(name, label_smoothing, shards, words):
    model, _, batch, state = make_parts(name)
    assert words_to_pack(batch.token_mask, shards, least=1) == words
    objective = CrossEntropy(task=Task(model, label_smoothing=label_smoothing, shards=shards))

    @functools.partial(jax.jit, static_argnums=0)
    def grad(words):
        return objective(state.params, None, batch, state.step, state.rng, words)

    expected, expected_grads, _ = grad(0)
    loss, grads, _ = grad(words)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), grads, expected_grads)
    assert np.isnan(grad(words - 4)[0])


def test_words_to_pack_are_few_sizes_that_suffice():
    mask = np.arange(17) < np.full((15, 5), 11)[..., None]
    # 15 * 5 * 10 words of 15 * 5 * 16 = 1200; the next multiple of 1200 / 16 = 75 is 750 itself.
    assert words_to_pack(mask) == 750
    mask[0, 0, :12] = True
    assert words_to_pack(mask) == 825
    assert words_to_pack(np.stack([mask, np.ones_like(mask)])) == 1200
    assert words_to_pack(np.zeros_like(mask)) == 75
    assert words_to_pack(mask, 3, least=25) == 275
    assert words_to_pack(mask, 3) == 256


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("up_down", {}),
        ("soft_attention", {"attention_dropout": 0.3}),
        ("relation_transformer", {"source_dropout": 0.3}),
    ],
)
def test_packed_step_with_dropout_is_the_same_on_four_devices(name, other):
    model, pruner, batch, state = make_parts(name, dropout=0.5, **other)
    tx = make_optimizer({"learning_rate": 1e-2, "epsilon": 1e-2}, 10)
    results = []
    for devices in (1, 4):
        mesh = make_mesh(devices, 4)
        step = make_train_step(CrossEntropy(task=Task(model, shards=devices)), pruner, tx, mesh)
        opt_state = tx.init({"params": state.params})
        placed = jax.device_put(
            jax.tree.map(np.array, state.replace(opt_state=opt_state, rng=None)),
            NamedSharding(mesh, PartitionSpec()),
        ).replace(rng=jax.random.key(3))
        batches = jax.tree.map(lambda leaf: leaf[None], batch)
        new, metrics = step(placed, batches, words_to_pack(batch.token_mask, devices, 1))
        results.append((new.params, metrics["loss"], optax.tree.norm(new.params)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *map(list, results)
    )


class Roots(Objective):
    """Sum of sqrt(x^2 w): at x = 0 the loss is 0, and its gradient 0 / 0."""

    def loss(self, params, inputs, step, rng, static, resources):
        return jnp.sum(jnp.sqrt(jnp.square(inputs) * params["a"]["kernel"])), {}


# Of five weights 1: at x = 1.8e19 the loss is 9e19, the sum of squared gradients 5 * 8.1e37 = inf.
BAD = [(np.nan, "the loss"), (0.0, "the gradient of {}"), (1.8e19, "the gradient of {}")]


def roots(xs, skip_nonfinite=False, calls=1):
    """State and faults after steps of SGD on the inputs `xs`, in so many calls."""
    pruner = make_pruner({"name": "none"}, total_steps=10)
    tx = optax.chain(optax.clip(1.0), optax.trace(0.9), optax.scale(-0.125))
    tx = by_entry({"params": tx})
    objective, mesh = Roots(task=Task(nn.Dense(1))), make_mesh(1, 1)
    step = make_train_step(objective, pruner, tx, mesh, skip_nonfinite=skip_nonfinite)
    params = {"a": {"kernel": np.ones(5, np.float32)}}
    state = SparseStep(pruner, tx).init(jax.random.key(0), params)
    faults = []
    for part in np.split(np.asarray(xs, np.float32)[:, None], calls):
        state, metrics = step(state, part)
        faults += metrics["fault"].tolist()
    return state, metrics, faults


@pytest.mark.parametrize(("value", "meaning"), BAD)
def test_a_step_that_is_not_finite_is_reported(value, meaning):
    state, _, faults = roots([1.0, value])
    names = fault_names(state, make_pruner({"name": "none"}, total_steps=10))
    assert list(suspects(state)) == ["params/a/kernel", "optimizer/params/1/trace/a/kernel"]
    assert faults == [0, 1 + names.index(meaning.format("params/a/kernel"))]
    assert roots([1.0, value], calls=2)[2] == faults


@pytest.mark.parametrize("calls", [1, 5])
def test_steps_that_are_not_finite_are_skipped(calls):
    """What is left are the steps on 2 and 3; the number of steps counts all."""
    state, metrics, faults = roots([np.nan, 2.0, 0.0, 1.8e19, 3.0], True, calls)
    expected, means, _ = roots([2.0, 3.0], calls=1 if calls == 1 else 2)
    assert faults == [1, 0, 2, 2, 0]
    for ours, theirs in zip(suspects(state).values(), suspects(expected).values(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert int(state.step) == 5
    assert float(metrics["loss"]) == float(means["loss"])
