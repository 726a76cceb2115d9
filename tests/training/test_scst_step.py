"""The self-critical step: one policy for search and gradient; parts add up, masks stay."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sparsecap_jax.decoding import Decoded, DecodeOptions, decode, decode_encoded
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.models import MODELS, init_params, make_model
from sparsecap_jax.pruning import make_pruner
from sparsecap_jax.pruning.masks import apply_masks
from sparsecap_jax.pruning.step import SparseStep
from sparsecap_jax.scst.config import ScstConfig
from sparsecap_jax.scst.document_frequency import count_documents
from sparsecap_jax.scst.rewards import HostRewards, make_rewards
from sparsecap_jax.scst.scorers import HostScorer
from sparsecap_jax.settings import build
from sparsecap_jax.tokenizers import train_tokenizer
from sparsecap_jax.training.losses import reward_loss
from sparsecap_jax.training.objectives import SelfCritical, Task
from sparsecap_jax.training.objectives.self_critical import sample_metrics
from sparsecap_jax.training.optimizers import make_optimizer
from sparsecap_jax.training.policy_gradient import PolicyGradient, Samples, split_floats
from sparsecap_jax.training.sharding import make_mesh
from sparsecap_jax.training.steps import make_train_step
from sparsecap_jax.types import Batch, Regions

LSTM = {"embed_size": 8, "rnn_size": 12, "attention_size": 6, "dropout": 0.5}
TRANSFORMER = {"d_model": 16, "ff_size": 24, "num_layers": 1, "num_heads": 2, "max_seq_length": 9}
SIZES = {
    "up_down": LSTM,
    "soft_attention": {**LSTM, "attention_dropout": 0.5},
    "transformer": TRANSFORMER,
    "relation_transformer": TRANSFORMER,
}
LENGTH, IMAGES, CAPTIONS = 9, 4, 3
REFERENCES = [
    ["a red dog on a horse", "the dog"],
    ["two men and a dog", "men on the red horse", "a a a a a"],
    ["a man", "zebra"],
    ["the horse and the dog on a red man"],
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    texts = [text for texts in REFERENCES for text in texts[:2]] * 4
    config = {"name": "word", "vocab_size": 16}
    return train_tokenizer(config, texts, tmp_path_factory.mktemp("words") / "tokenizer")


@pytest.fixture(scope="module")
def rewards(tokenizer):
    config = ScstConfig(bleu_1=0.5)
    return make_rewards(config.weights, count_documents(REFERENCES), REFERENCES, tokenizer)


def make_batch(images=IMAGES):
    rng = np.random.default_rng(0)
    valid = np.arange(5) < np.array([5, 3, 4, 1])[:images, None]
    features = (rng.normal(size=(images, 5, 10)) * valid[..., None]).astype(np.float32)
    boxes = np.sort(rng.random((images, 5, 2, 2)), axis=2).reshape(images, 5, 4)
    regions = Regions(features, valid, boxes.astype(np.float32), features.mean(axis=1))
    tokens = np.zeros((images, 1, LENGTH), np.int32)
    return Batch(regions, tokens, tokens > 0, np.arange(images, dtype=np.int32))


def decode_options(tokenizer):
    ids = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
    return DecodeOptions(method="greedy", max_length=LENGTH, **ids)


@functools.cache
def make_parts(name, vocab_size):
    """A model whose captions have lengths of 1 to 9 tokens, and its weights."""
    fields = {"vocab_size": vocab_size, "feature_size": 10, **SIZES[name]}
    model = make_model({"name": name, **fields})
    params = init_params(model, jax.random.key(1))
    return model, jax.tree.map(lambda leaf: leaf * 1.5, params)


def make_state(params, pruner, tx, drop):
    prune = pruner.init(jax.random.key(2), params)
    if drop:
        rng = np.random.default_rng(5)
        masks = jax.tree.map(lambda mask: np.float32(rng.random(mask.shape) < 0.5), prune.masks)
        prune = pruner.load_masks(prune, masks)
    step = SparseStep(pruner, tx, lambda *args: None)
    return step.start(jax.random.key(3), prune, jax.tree.map(jnp.array, params))


def take_step(
    name, tokenizer, rewards, config, pruner_name="none", devices=1, drop=False, **pruner_fields
):
    """Masks before a step of SGD at rate 1, the state after it, and metrics; no transfers."""
    model, params = make_parts(name, tokenizer.vocab_size)
    pruner = make_pruner({"name": pruner_name, **pruner_fields}, total_steps=10)
    sgd = {"name": "sgd", "clip": "none", "schedule": "constant", "learning_rate": 1.0}
    tx = make_optimizer(sgd, 10, trains_masks=pruner.trains_masks)
    mesh = make_mesh(devices, IMAGES)
    objective = SelfCritical(
        task=Task(model), config=config, rewards=rewards, options=decode_options(tokenizer)
    )
    step = make_train_step(objective, pruner, tx, mesh)
    replicated = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec(None, "data"))
    state = jax.device_put(make_state(params, pruner, tx, drop), replicated)
    masks = jax.device_get(state.prune.masks)
    batches = jax.tree.map(lambda leaf: leaf[None], make_batch())
    inputs = jax.device_put(objective.inputs(batches, 0)[0], split)
    with jax.transfer_guard("disallow"):
        after, metrics = step(state, inputs)
    return masks, after, jax.device_get(metrics)


RANDOM = ScstConfig(num_samples=CAPTIONS, length_buckets=1)


def test_sizes_are_listed_for_every_model():
    assert set(SIZES) == set(MODELS)


@pytest.mark.parametrize("name", sorted(SIZES))
def test_search_and_packed_pass_compute_the_same_log_probs(name, tokenizer):
    model, params = make_parts(name, tokenizer.vocab_size)
    options = decode_options(tokenizer)
    options = dataclasses.replace(options, method="sample", num_samples=CAPTIONS)

    @jax.jit
    def both(params, regions):
        context = model.apply({"params": params}, regions, method="encode")
        found = decode_encoded(model, params, context, options, jax.random.key(0))
        bos = jnp.full((IMAGES, CAPTIONS, 1), options.bos_id, jnp.int32)
        inputs = jnp.concatenate([bos, found.tokens[..., :-1]], axis=-1)
        inside = np.arange(LENGTH) < found.lengths[..., None]
        log_probs, places = model.apply(
            {"params": params}, context, inputs, inside, inputs.size, method="decode_packed"
        )
        return found, log_probs, places

    found, log_probs, places = jax.device_get(both(params, make_batch().regions))
    there = places < found.tokens.size
    assert there.sum() == found.lengths.sum()
    assert len(set(found.lengths.ravel())) > 2  # captions of different lengths, PAD behind most
    chosen = log_probs[there, found.tokens.ravel()[places[there]]]
    np.testing.assert_allclose(chosen, found.log_probs.ravel()[places[there]], atol=1e-4)


def slow_gradient(model, params, regions, found, advantages, bos_id):
    """The loss of `losses.reward_loss` by teacher forcing on padded captions, differentiated."""
    bos = np.full((*found.tokens.shape[:2], 1), bos_id, np.int32)
    inputs = np.concatenate([bos, found.tokens[..., :-1]], axis=-1)
    mask = np.arange(LENGTH) < found.lengths[..., None]

    def loss(params):
        log_probs = model.apply({"params": params}, regions, inputs)
        chosen = jnp.take_along_axis(log_probs, found.tokens[..., None], axis=-1)[..., 0]
        return reward_loss(chosen, advantages, mask)

    return jax.jit(jax.value_and_grad(loss))(params)


MICRO = [(0, 1), (0, 3), (5, 1), (5, 2), (4, 3)]


@pytest.mark.parametrize(("micro_batch", "buckets"), MICRO)
def test_micro_batches_add_up_to_the_gradient_of_the_loss(tokenizer, micro_batch, buckets):
    model, params = make_parts("up_down", tokenizer.vocab_size)
    rng, regions = np.random.default_rng(3), make_batch().regions
    lengths = np.array([[1, 9, 3], [4, 4, 2], [9, 7, 0], [5, 5, 6]])
    tokens = rng.integers(4, tokenizer.vocab_size, (IMAGES, CAPTIONS, LENGTH)).astype(np.int32)
    inside = np.arange(LENGTH) < lengths[..., None]
    advantages = rng.normal(size=lengths.shape).astype(np.float32)
    found = Decoded(np.where(inside, tokens, 0), np.float32(inside), np.float32(lengths), lengths)
    policy = PolicyGradient(model, 2, micro_batch, buckets)
    samples = Samples(*map(jnp.asarray, (found.tokens, inside, found.log_probs, advantages)))

    @jax.jit
    def fast(params):
        def encode(params):
            return split_floats(model.apply({"params": params}, regions, method="encode"))

        floats, pull, others = jax.vjp(encode, params, has_aux=True)
        loss, (grads, context_grads), _ = policy(params, floats, others, samples)
        return loss, jax.tree.map(jnp.add, grads, *pull(context_grads))

    loss, grads = fast(params)
    slow_loss, slow = slow_gradient(model, params, regions, found, advantages, 2)
    np.testing.assert_allclose(loss, slow_loss, rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(slow), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


VARIANTS = list(itertools.product(("random", "beam"), ("sample", "greedy")))


@pytest.mark.parametrize(("sample", "baseline"), VARIANTS)
def test_step_equals_its_parts_taken_apart(tokenizer, rewards, sample, baseline):
    config = dataclasses.replace(RANDOM, sample=sample, baseline=baseline)
    _, after, metrics = take_step("up_down", tokenizer, rewards, config)
    model, params = make_parts("up_down", tokenizer.vocab_size)
    regions = make_batch().regions
    step_rng, _ = jax.random.split(jax.random.fold_in(jax.random.key(3), 0))
    _, sample_rng = jax.random.split(step_rng)
    options = decode_options(tokenizer)
    search = {"method": "beam", "beam_size": CAPTIONS}
    if sample == "random":
        search = {"method": "sample", "num_samples": CAPTIONS}
    searched = dataclasses.replace(options, **search)
    found = jax.device_get(decode(model, params, regions, searched, sample_rng))
    host = HostScorer(count_documents(REFERENCES), REFERENCES)

    def reward(found):
        texts = [
            [tokenizer.decode(row[:n]) for row, n in zip(rows, counts, strict=True)]
            for rows, counts in zip(found.tokens, found.lengths, strict=True)
        ]
        cider_d, bleu = host.score_texts(texts)
        return cider_d + 0.5 * bleu[..., 0] + bleu[..., 3]

    rewarded = reward(found)
    if baseline == "greedy":
        compared = reward(jax.device_get(decode(model, params, regions, options)))
    else:
        compared = (rewarded.sum(axis=1, keepdims=True) - rewarded) / (CAPTIONS - 1)
    advantages = (rewarded - compared).astype(np.float32)
    loss, grads = slow_gradient(model, params, regions, found, advantages, tokenizer.bos_id)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["reward"], rewarded.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["baseline"], compared.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["advantage_std"], advantages.std(), rtol=1e-5)
    np.testing.assert_allclose(metrics["length"], found.lengths.mean(), rtol=1e-6)
    assert metrics["log_prob_gap"] < 1e-4
    moved = jax.tree.map(lambda new, old: old - new, after.params, params)  # SGD at rate 1
    for ours, theirs in zip(jax.tree.leaves(moved), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_repeated_ngrams_entropy_and_length_by_hand():
    tokens = np.array([[[5, 6, 5, 6, 5, 6, 5, 3, 0], [4, 5, 6, 7, 8, 3, 0, 0, 0]]], np.int32)
    lengths = np.array([[8, 6]], np.int32)
    log_probs = np.where(np.arange(9) < lengths[..., None], -0.5, 0).astype(np.float32)
    metrics = sample_metrics(Decoded(tokens, log_probs, log_probs.sum(-1), lengths))
    # 4-grams of the first: 5656 twice, 6565 twice, 5653 once... 5656 6565 5656 6565 5653; of the
    # second three different ones: two of eight have been there before.
    np.testing.assert_allclose(metrics["repeated_4grams"], 2 / 8)
    np.testing.assert_allclose(metrics["entropy"], 0.5)
    np.testing.assert_allclose(metrics["length"], 7)


def test_frozen_masks_stay_and_pruned_weights_do_not_move(tokenizer, rewards):
    _, params = make_parts("up_down", tokenizer.vocab_size)
    before, after, metrics = take_step(
        "up_down", tokenizer, rewards, RANDOM, "mask_freeze", drop=True
    )
    np.testing.assert_allclose(metrics["sparsity"], 0.5, atol=0.02)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after.prune.masks), strict=True):
        np.testing.assert_array_equal(old, new)
    moved = jax.tree.map(lambda new, old: new - old, after.params, params)
    masked = apply_masks(moved, jax.tree.map(lambda mask: 1 - mask, after.prune.masks))
    kernel = ("lang_lstm", "kernel_ih")
    assert not np.any(np.asarray(masked[kernel[0]][kernel[1]]))
    assert np.any(np.asarray(moved[kernel[0]][kernel[1]]))


def test_supermasks_are_trained_under_reward(tokenizer, rewards):
    config = dataclasses.replace(RANDOM, baseline="greedy")
    before, after, metrics = take_step(
        "up_down", tokenizer, rewards, config, "supermask", devices=2, sparsity=0.5
    )
    assert metrics["log_prob_gap"] < 1e-4  # masks are drawn once, for search and gradient
    moved = [
        np.any(np.asarray(old) != np.asarray(new))
        for old, new in zip(
            jax.tree.leaves(before), jax.tree.leaves(after.prune.masks), strict=True
        )
    ]
    assert all(moved)


@pytest.mark.parametrize("devices", [1, 4])
def test_subwords_are_scored_on_the_host(devices, tmp_path):
    texts = [text for texts in REFERENCES for text in texts[:2]] * 4
    subwords = train_tokenizer({"name": "bpe", "vocab_size": 30}, texts, tmp_path / "tokenizer")
    config = ScstConfig(cider_d=0.0, bleu_1=1.0, bleu_4=0.0)
    frequency = count_documents(REFERENCES)
    mesh = make_mesh(devices, IMAGES)
    made = make_rewards(config.weights, frequency, REFERENCES, subwords, mesh)
    assert isinstance(made, HostRewards)
    captions = [["the horse", "a red dog"], ["men", ""], ["a man", "zebra"], ["dog", "the man"]]
    ids = [[subwords.encode(text)[1:] for text in row] for row in captions]
    lengths = np.array([[len(row) for row in rows] for rows in ids], np.int32)
    tokens = np.zeros((4, 2, lengths.max()), np.int32)
    for place in np.ndindex(4, 2):
        tokens[place][: lengths[place]] = ids[place[0]][place[1]]
    split = NamedSharding(mesh, PartitionSpec("data"))
    given = jax.device_put((made.gather(np.arange(4)), tokens, lengths), split)
    found = jax.jit(lambda *given: made((), *given))(*given)
    _, bleu = HostScorer(frequency, REFERENCES).score_texts(captions)
    np.testing.assert_allclose(found, bleu[..., 0], rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_samples": 1}, "scst.num_samples is 1; expected 2 or more with scst.baseline"),
        ({"cider_d": 0.0, "bleu_4": 0.0}, "scst: all weights are 0"),
        ({"sample": "beams"}, "scst.sample is 'beams'"),
        ({"start_epoch": -2}, "scst.start_epoch is -2"),
        ({"bleu_5": 1.0}, "scst.bleu_5: unknown key"),
    ],
)
def test_faulty_configs(fields, message):
    with pytest.raises(ConfigError, match=message):
        build(ScstConfig, fields, "scst")
