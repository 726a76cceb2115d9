"""Small captioners, batches and objectives for the tests of sharding and accumulation."""

import functools
import itertools

import jax
import numpy as np

from sparsecap_jax.decoding import DecodeOptions
from sparsecap_jax.models import init_params, make_model
from sparsecap_jax.pruning import make_pruner
from sparsecap_jax.pruning.paths import by_path
from sparsecap_jax.pruning.step import SparseStep
from sparsecap_jax.scst.config import ScstConfig
from sparsecap_jax.scst.document_frequency import count_documents
from sparsecap_jax.scst.rewards import make_rewards
from sparsecap_jax.tokenizers import train_tokenizer
from sparsecap_jax.training.objectives import CrossEntropy, SelfCritical, Task
from sparsecap_jax.training.optimizers import make_optimizer
from sparsecap_jax.training.steps import make_train_step
from sparsecap_jax.types import Batch, Regions

LENGTH, VOCABULARY, STEPS = 9, 16, 4
SIZES = {
    "up_down": {"embed_size": 8, "rnn_size": 16, "attention_size": 8, "dropout": 0.0},
    "relation_transformer": {
        **{"d_model": 16, "ff_size": 24, "num_layers": 1, "num_heads": 2, "max_seq_length": LENGTH},
        **{"dropout": 0.0, "source_dropout": 0.0},
    },
}
PRUNERS = {
    "none": {},
    "supermask": {"sparsity": 0.5},
    # Prunes after each of the first steps, so that masks differ between them.
    "mag_grad_blind": {"sparsity": 0.5, "start_step": 0, "frequency": 1, "events": 3},
}
# Real tokens of two captions for each of 8 images, BOS included; 0: no caption.
LENGTHS = [[9, 4], [5, 0], [7, 6], [2, 9], [3, 3], [8, 2], [6, 7], [9, 9]]
TEXTS = [["a red dog on a horse", "the dog"], ["two men and a dog", "men on the red horse"]] * 4


def make_batch():
    """A batch of 8 images, two captions each."""
    rng = np.random.default_rng(0)
    mask = np.arange(LENGTH) < np.array(LENGTHS)[..., None]
    tokens = np.where(mask, rng.integers(4, VOCABULARY, mask.shape), 0).astype(np.int32)
    tokens[..., 0] = np.where(mask[..., 0], 2, 0)
    valid = np.arange(5) < np.array([5, 3, 4, 1, 5, 2, 4, 3])[:, None]
    features = (rng.normal(size=(8, 5, 10)) * valid[..., None]).astype(np.float32)
    boxes = np.sort(rng.random((8, 5, 2, 2)), axis=2).reshape(8, 5, 4).astype(np.float32)
    regions = Regions(features, valid, boxes, features.mean(axis=1))
    return Batch(regions, tokens, mask, np.arange(8, dtype=np.int32))


@functools.cache
def captioner(name, scale=1.0):
    """A model, and initial weights as NumPy arrays."""
    model = make_model({"name": name, "vocab_size": VOCABULARY, "feature_size": 10, **SIZES[name]})
    params = init_params(model, jax.random.key(1))
    return model, jax.tree.map(lambda leaf: np.array(leaf) * np.float32(scale), params)


def make_parts(name, pruner_name, scale=1.0):
    """Model, pruner, optimizer and state on the host, before the first step.

    Adam's epsilon is large, so that gradients that are 0 but for rounding give no step.
    """
    model, params = captioner(name, scale)
    pruner = make_pruner({"name": pruner_name, **PRUNERS[pruner_name]}, total_steps=STEPS)
    recipe = {"learning_rate": 1e-2, "epsilon": 1e-2}
    tx = make_optimizer(recipe, STEPS, trains_masks=pruner.trains_masks)
    step = SparseStep(pruner, tx)
    state = step.start(jax.random.key(3), pruner.init(jax.random.key(2), params), params)
    return model, pruner, tx, state


def cross_entropy(model, shards=1):
    return CrossEntropy(task=Task(model, shards=shards))


def self_critical(model, folder, **fields):
    """Beams rewarded over a greedy baseline: nothing is random."""
    words, texts = {"name": "word", "vocab_size": VOCABULARY}, itertools.chain(*TEXTS)
    tokenizer = train_tokenizer(words, list(texts), folder / "tokenizer")
    config = ScstConfig(sample="beam", num_samples=3, length_buckets=1, bleu_1=0.5, **fields)
    rewards = make_rewards(config.weights, count_documents(TEXTS), TEXTS, tokenizer)
    ids = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
    options = DecodeOptions(method="greedy", max_length=LENGTH, **ids)
    return SelfCritical(task=Task(model), config=config, rewards=rewards, options=options)


def take_steps(objective, pruner, tx, state, placement, steps=STEPS):
    """States after each step, and losses."""
    shardings = placement.shardings(state, state.params)
    step = make_train_step(objective, pruner, tx, placement.mesh, shardings=shardings)
    copy = jax.tree.map(np.array, state.replace(rng=None)).replace(rng=jax.random.key(3))
    state = jax.device_put(copy, shardings)
    batches = jax.tree.map(lambda leaf: leaf[None], make_batch())
    inputs, static = objective.inputs(batches, 0)
    states, losses = [], []
    for _ in range(steps):
        state, metrics = step(state, inputs, static)
        losses.append(float(metrics["loss"]))
        states.append(jax.device_get(state.replace(rng=None)))
    return state, states, losses


def assert_same(one, several):
    """Losses, weights and masks are equal; a self-critical loss is a sum that nearly cancels."""
    np.testing.assert_allclose(several[2], one[2], rtol=1e-5, atol=1e-8)
    for ours, theirs in zip(several[1], one[1], strict=True):
        pair = [by_path({"params": s.params, "masks": s.prune.masks}) for s in (ours, theirs)]
        assert pair[0].keys() == pair[1].keys()
        for path, leaf in pair[1].items():
            np.testing.assert_allclose(pair[0][path], leaf, rtol=1e-5, atol=1e-5)
