"""Accumulation: the update of a batch as large as all of its parts."""

import jax
import numpy as np
import pytest
from flax import linen as nn
from sharded_cases import (
    assert_same,
    cross_entropy,
    make_batch,
    make_parts,
    self_critical,
    take_steps,
)

from sparsecap_jax.training.accumulation import accumulated
from sparsecap_jax.training.objectives import CrossEntropy, Task
from sparsecap_jax.training.sharding import Placement, make_mesh

CASES = [
    ("up_down", "supermask", 1, 4),
    ("relation_transformer", "mag_grad_blind", 1, 2),
    ("up_down", "none", 2, 2),
]


def test_words_are_spread_unevenly_over_the_parts():
    """Else plain means over the parts would pass, too."""
    words = make_batch().token_mask[..., 1:].sum(axis=(1, 2))
    assert words.tolist() == [11, 4, 11, 9, 4, 8, 11, 16]
    assert len(set(words.reshape(4, 2).sum(axis=1))) == 4


@pytest.mark.parametrize(("name", "pruner_name", "devices", "parts"), CASES)
def test_parts_give_the_update_of_the_whole_batch(name, pruner_name, devices, parts):
    model, pruner, tx, state = make_parts(name, pruner_name)
    placement = Placement(make_mesh(devices, 8))
    whole = cross_entropy(model, devices)
    expected = take_steps(whole, pruner, tx, state, placement)
    assert_same(expected, take_steps(accumulated(whole, parts), pruner, tx, state, placement))


def test_parts_of_self_critical_training(tmp_path):
    """With beams and a greedy baseline samples are the same; their lengths differ."""
    model, pruner, tx, state = make_parts("up_down", "none", scale=3.0)
    whole, placement = self_critical(model, tmp_path), Placement(make_mesh(1, 8))
    logits = state.params["logit_0"]
    ends = np.float32(1.5) * (np.arange(16) == whole.options.eos_id)  # else all reach the limit
    state = state.replace(
        params={**state.params, "logit_0": {**logits, "bias": logits["bias"] + ends}}
    )
    expected = take_steps(whole, pruner, tx, state, placement, steps=1)
    assert expected[2][0] != 0
    assert len({*lengths_of_parts(whole, state.params)}) > 1
    assert_same(expected, take_steps(accumulated(whole, 4), pruner, tx, state, placement, steps=1))


def lengths_of_parts(objective, params):
    """Mean lengths of the captions of two images each, which weigh the parts."""
    inputs, _ = objective.inputs(jax.tree.map(lambda leaf: leaf[None], make_batch()), 0)

    @jax.jit
    def length(part):
        arrays = objective.resources
        return objective(params, None, part, 0, jax.random.key(0), None, arrays)[2]["length"]

    halves = jax.tree.map(lambda leaf: leaf.reshape(4, 2, *leaf.shape[2:]), inputs)
    return [float(length(jax.tree.map(lambda leaf: leaf[i], halves))) for i in range(4)]  # noqa: B023


class Recorded(CrossEntropy):
    """Keeps the images of each part; its loss is the number of the third image of a part."""

    def inputs(self, batches, step):
        self.task.references.append(batches.index.tolist())
        return super().inputs(batches, step)

    def loss(self, params, inputs, step, rng, static, resources):
        value = params * inputs.index[2]
        return value, {"third": value}


# Shards, images of the parts, and words to pack: a part has 4 x 2 x 8 = 64 places, or twice 32.
PARTS = [
    (1, [[0, 1, 2, 3], [4, 5, 6, 7]], 64, (2 + 6) / 2),
    (2, [[0, 1, 4, 5], [2, 3, 6, 7]], 32, (4 + 6) / 2),
]


@pytest.mark.parametrize(("shards", "images", "places", "third"), PARTS)
def test_each_device_has_a_share_of_each_part(shards, images, places, third):
    """Host and device cut alike: what is packed on the host fits the part on the device."""
    inner = Recorded(task=Task(nn.Dense(1), references=[], shards=shards))
    objective = accumulated(inner, 2)
    batches = jax.tree.map(lambda leaf: leaf[None], make_batch())
    inputs, words = objective.inputs(batches, 0)
    assert (inner.task.references, words) == ([images], places)
    jax.tree.map(np.testing.assert_array_equal, inputs, batches)
    batch = jax.tree.map(jax.numpy.asarray, make_batch())
    metrics = objective(np.float32(1), None, batch, 0, jax.random.key(0), words)[2]
    assert metrics["third"] == third


def test_each_part_has_its_own_dropout_and_metrics_are_means():
    class Noise(CrossEntropy):
        def part_weight(self, inputs, metrics):
            return jax.numpy.sum(inputs)

        def loss(self, params, inputs, step, rng, static, resources):
            value = jax.random.uniform(rng)
            return value * params, {"caption_loss": value, "noise": value}

    objective = accumulated(Noise(task=Task(nn.Dense(1))), 2)
    inputs = np.array([1.0, 2.0, 4.0, 5.0], np.float32)
    rng = jax.random.key(0)
    loss, grad, metrics = objective(np.float32(2), None, inputs, 0, rng)
    draws = [float(jax.random.uniform(key)) for key in jax.random.split(rng)]
    assert draws[0] != draws[1]
    mean = (3 * draws[0] + 9 * draws[1]) / 12
    np.testing.assert_allclose([loss, grad], [2 * mean, mean], rtol=1e-6)
    np.testing.assert_allclose(metrics["caption_loss"], mean, rtol=1e-6)
    np.testing.assert_allclose(metrics["noise"], np.mean(draws), rtol=1e-6)
