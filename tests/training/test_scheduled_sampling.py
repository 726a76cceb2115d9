"""The schedule of scheduled sampling by hand, and its way through config and training step."""

import jax
import numpy as np
import pytest

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.models import make_model
from sparsecap_jax.runs.config import default_config, validate
from sparsecap_jax.training.accumulation import accumulated
from sparsecap_jax.training.config import ScheduledSampling
from sparsecap_jax.training.objectives import CrossEntropy, Task
from sparsecap_jax.types import Batch, Regions


def test_schedule_by_hand():
    sampling = ScheduledSampling(start=2, increase_every=3, increase_prob=0.1, max_prob=0.25)
    probability = sampling.schedule(steps_per_epoch=10)
    # Epochs 0 to 4: 0; 5 to 7: 0.1; 8 to 10: 0.2; from 11 on: 0.25.
    steps = [0, 20, 49, 50, 79, 80, 109, 110, 10_000]
    expected = [0, 0, 0, 0.1, 0.1, 0.2, 0.2, 0.25, 0.25]
    np.testing.assert_allclose([probability(step) for step in steps], expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(probability)(np.int32(80)), 0.2, rtol=1e-6)
    assert sampling.first_step(10) == 50
    never = ScheduledSampling()
    assert never.first_step(10) is None
    assert float(never.schedule(10)(10_000)) == 0.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"increase_every": 0}, r"scheduled_sampling_increase_every is 0; expected at least 1"),
        ({"increase_prob": -0.1}, r"scheduled_sampling_increase_prob is -0.1; expected at least 0"),
        (
            {"max_prob": 1.5},
            r"scheduled_sampling_max_prob is 1.5; expected at least 0 and at most 1",
        ),
    ],
)
def test_faults_name_the_field(fields, message):
    config = default_config()
    for name, value in fields.items():
        config.train[f"scheduled_sampling_{name}"] = value
    with pytest.raises(ConfigError, match=message):
        validate(config)


def test_transformers_cannot():
    config = default_config("transformer")
    validate(config)
    config.train.scheduled_sampling_start = 0
    with pytest.raises(ConfigError, match=r"start is 0; expected -1 for a model that is not recur"):
        validate(config)


def test_training_loss_samples_from_its_step_on():
    """No dropout: the loss is that of teacher forcing before the first step, and random after."""
    sizes = {"embed_size": 5, "rnn_size": 6, "attention_size": 4, "dropout": 0.0}
    model = make_model({"name": "up_down", "vocab_size": 9, "feature_size": 3, **sizes})
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, 3, 3)).astype(np.float32)
    regions = Regions(
        features, np.ones((2, 3), bool), np.zeros((2, 3, 4), np.float32), features[:, 0]
    )
    tokens = rng.integers(4, 9, (2, 2, 5)).astype(np.int32)
    batch = Batch(regions, tokens, np.ones_like(tokens, bool), np.arange(2, dtype=np.int32))
    params = model.init(jax.random.key(0), regions, tokens)["params"]
    params = jax.tree.map(lambda leaf: 3 * leaf, params)
    sampling = ScheduledSampling(start=0, increase_every=1, increase_prob=1.0, max_prob=1.0)
    plain = CrossEntropy(task=Task(model))
    objective = CrossEntropy(task=Task(model, steps_per_epoch=4, sampling=sampling))
    stacked = jax.tree.map(lambda leaf: np.stack([leaf] * 2), batch)
    assert objective.inputs(stacked, 2)[1] == 16  # words of whole batches until step 4
    assert objective.inputs(stacked, 3)[1] == 0
    joined = jax.tree.map(lambda leaf: leaf.reshape(1, -1, *leaf.shape[2:]), stacked)
    halves = accumulated(objective, 2)  # of one step
    assert [halves.inputs(joined, step)[1] for step in (3, 4)] == [16, 0]
    sampled = jax.jit(
        lambda step, rng, words: objective(params, None, batch, step, rng, words)[0],
        static_argnums=2,
    )

    def loss(step, seed, words=0):
        return sampled(np.int32(step), jax.random.key(seed), words)

    expected = plain(params, None, batch, jax.numpy.int32(0), jax.random.key(0))[0]
    np.testing.assert_allclose(loss(3, 0), expected, rtol=1e-5)
    np.testing.assert_allclose(loss(3, 1, 16), expected, rtol=1e-5)
    after = {float(loss(4, seed)) for seed in range(3)}
    assert len(after) == 3 and all(abs(value - expected) > 1e-3 for value in after)
