"""Compiled training steps for benchmarks: models of the papers on inputs like those of COCO."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from paper_models import (
    IDS,
    MAX_LENGTH,
    is_recurrent,
    our_fields,
    random_captions,
    random_regions,
)

CAPTIONS = 5
TOTAL_STEPS = 100_000
LSTM_RECIPE = {"learning_rate": 1e-2, "epsilon": 1e-2}
NOAM = {"schedule": "noam"}
END = 1 / 12  # probability of EOS at every word of self-critical samples


class StepCase(NamedTuple):
    """A compiled step: `state, metrics = step(state, *inputs)`; `model` is the captioner."""

    step: Callable[..., tuple[Any, dict]]
    state: Any
    inputs: tuple
    model: Any


def make_parts(config, pruner_name, **fields):
    """Objective, pruner and optimizer of teacher forcing; `fields` change the model."""
    from sparsecap_jax.models import make_model
    from sparsecap_jax.pruning import make_pruner
    from sparsecap_jax.training.objectives import CrossEntropy, Task
    from sparsecap_jax.training.optimizers import make_optimizer

    dropout = {}
    if pruner_name != "none":
        dropout = (
            {"dropout": 0.1}
            if is_recurrent(config)
            else {"dropout": 0.1 / 3, "source_dropout": 0.1}
        )
    model = make_model(our_fields(config) | dropout | fields)
    sparsity = {} if pruner_name == "none" else {"sparsity": 0.95}
    pruner = make_pruner({"name": pruner_name, **sparsity}, total_steps=TOTAL_STEPS)
    recipe = LSTM_RECIPE if is_recurrent(config) else NOAM
    tx = make_optimizer(recipe, TOTAL_STEPS, trains_masks=pruner.trains_masks)
    return CrossEntropy(task=Task(model)), pruner, tx


def first_state(objective, pruner, tx, change=lambda params: None):
    """The state before the first step; `change` may replace leaves of the initial params."""
    import jax

    from sparsecap_jax.models import init_params
    from sparsecap_jax.pruning.step import SparseStep

    model = objective.task.model

    def first():
        keys = jax.random.split(jax.random.key(0), 3)
        params = init_params(model, keys[0])
        change(params)
        prune = pruner.init(keys[1], params)
        return SparseStep(pruner, tx, objective).start(keys[2], prune, params)

    return jax.jit(first)()


def caption_batch(config, images):
    """A batch of random captions, `types.Batch` of NumPy arrays."""
    import numpy as np

    from sparsecap_jax.types import Batch, Regions

    tokens, mask = random_captions(images, CAPTIONS, config)
    index = np.arange(images, dtype=np.int32)
    return Batch(Regions(*random_regions(images, config)), tokens, mask, index)


def placed_step(objective, pruner, tx, images, state):
    """The compiled step on one device, and the state on it."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    from sparsecap_jax.training.sharding import make_mesh
    from sparsecap_jax.training.steps import make_train_step

    mesh = make_mesh(1, images)
    step = make_train_step(objective, pruner, tx, mesh)
    return step, jax.device_put(state, NamedSharding(mesh, PartitionSpec()))


def teacher_forcing(config, images, pruner_name, **fields):
    """The step of cross-entropy training, as a `StepCase`."""
    import jax

    from sparsecap_jax.training.objectives import words_to_pack

    objective, pruner, tx = make_parts(config, pruner_name, **fields)
    batch = caption_batch(config, images)
    state = first_state(objective, pruner, tx)
    step, state = placed_step(objective, pruner, tx, images, state)
    batches = jax.device_put(jax.tree.map(lambda leaf: leaf[None], batch))
    return StepCase(step, state, (batches, words_to_pack(batch.token_mask)), objective.task.model)


def make_rewards(texts, vocab_size):
    """Rewards for a vocabulary whose token i is the word `wi`."""
    import numpy as np

    from sparsecap_jax.scst.document_frequency import count_documents
    from sparsecap_jax.scst.rewards import DeviceRewards, RewardWeights
    from sparsecap_jax.scst.scorers import idf_tables
    from sparsecap_jax.scst.words import END as NONE
    from sparsecap_jax.scst.words import References, Vocabulary, WordTable

    frequency = count_documents(texts)
    vocabulary = Vocabulary(frequency.words)
    words = [vocabulary.add(f"w{i}") for i in range(vocab_size)]
    for special in ("pad_token_id", "bos_token_id", "eos_token_id"):
        words[IDS[special]] = NONE
    table = WordTable(np.array(words, np.int32), 1, 0, IDS["eos_token_id"])
    weights = RewardWeights(1.0, (0.0, 0.0, 0.0, 1.0))
    return DeviceRewards(weights, (table, idf_tables(frequency)), References(texts, vocabulary))


def self_critical(config, texts, images, samples, micro_batch, length_buckets=4, **fields):
    """The step of self-critical training with frozen masks, as a `StepCase`.

    The bias of EOS is raised so that random weights end captions with probability `END`.
    """
    import jax
    import numpy as np

    from sparsecap_jax.decoding import DecodeOptions
    from sparsecap_jax.models import make_model
    from sparsecap_jax.pruning import make_pruner
    from sparsecap_jax.scst.config import ScstConfig
    from sparsecap_jax.training.objectives import SelfCritical, Task
    from sparsecap_jax.training.optimizers import make_optimizer
    from sparsecap_jax.types import Batch, Regions

    model = make_model(our_fields(config) | fields)
    pruner = make_pruner({"name": "mask_freeze"}, total_steps=10)
    tx = make_optimizer({"learning_rate": 5e-5, "schedule": "constant"}, 10)
    scst = ScstConfig(num_samples=samples, micro_batch=micro_batch, length_buckets=length_buckets)
    options = DecodeOptions(method="greedy", max_length=MAX_LENGTH)
    rewards = make_rewards(texts, config["vocab_size"])
    objective = SelfCritical(task=Task(model), config=scst, rewards=rewards, options=options)

    def raise_end(params):
        layer = next(params[name] for name in ("logits", "logit_0", "logit") if name in params)
        bias = math.log(config["vocab_size"] * END / (1 - END))
        layer["bias"] = layer["bias"].at[IDS["eos_token_id"]].set(bias)

    tokens = np.zeros((images, 1, MAX_LENGTH), np.int32)
    index = np.arange(images, dtype=np.int32)
    batch = Batch(Regions(*random_regions(images, config)), tokens, tokens > 0, index)
    batches = jax.tree.map(lambda leaf: leaf[None], batch)
    state = first_state(objective, pruner, tx, raise_end)
    step, state = placed_step(objective, pruner, tx, images, state)
    return StepCase(step, state, (jax.device_put(objective.inputs(batches, 0)[0]),), model)
