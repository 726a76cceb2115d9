"""Run directories of ours made of the figures of the reference, and one per family drawn here."""

import jax
import jax.numpy as jnp
import numpy as np
import reference_cases as cases

from sparsecap_jax.commands.convert import run_config
from sparsecap_jax.models import abstract_params, make_model
from sparsecap_jax.pruning import PruneState, make_pruner
from sparsecap_jax.pruning.masks import finalize
from sparsecap_jax.pruning.step import TrainState
from sparsecap_jax.runs.checkpoints import Checkpoints
from sparsecap_jax.runs.config import default_config, model_config, model_section, pruner_section
from sparsecap_jax.runs.directory import LoadedRun, save_run
from sparsecap_jax.tokenizers import make_tokenizer, train_tokenizer

CAPTIONS = [f"a {c} {s} near the {t}" for c in ["red", "blue"] for s, t in ("ab", "cd", "ef")]
TRANSFORMER = {"d_model": 16, "ff_size": 24, "num_layers": 2, "num_heads": 4}
ORDER = (0, 0, 0, 1, 1, 1)
ACORT = {
    **TRANSFORMER,
    **{f"share_layer_{side}": ORDER for side in ("encoder", "decoder")},
    **{f"share_attention_{side}": "kv" for side in ("encoder", "decoder")},
}
ACORT_QK = {**ACORT, "share_attention_encoder": "qk", "share_attention_decoder": "qk"}
UP_DOWN = {"embed_size": 12, "rnn_size": 16, "attention_size": 10}
# name -> model, its fields, pruner, tokenizer
FAMILIES = {
    "up_down": ("up_down", UP_DOWN, "none", "word"),
    "up_down_supermask": ("up_down", {**UP_DOWN, "logit_layers": 2}, "supermask", "unigram"),
    "transformer": ("transformer", TRANSFORMER, "none", "bpe"),
    "ort": ("relation_transformer", {**TRANSFORMER, "box_embedding": "plain"}, "none", "char"),
    "ort_supermask": ("relation_transformer", TRANSFORMER, "supermask", "word"),
    "ort_gradual": ("relation_transformer", TRANSFORMER, "mag_grad_dist", "word"),
    "acort": ("relation_transformer", ACORT, "none", "radix"),
    "acort_supermask": ("relation_transformer", ACORT_QK, "supermask", "radix"),
}
FEATURES = 6


def drawn_run(directory, name):
    """Write a run directory with random weights and masks, a checkpoint in it; return its parts."""
    model_name, fields, pruner_name, tokenizer_name = FAMILIES[name]
    config = default_config(model_name, pruner_name, tokenizer_name)
    config.model = model_section(model_name, **fields)
    config.data.feature_size = FEATURES
    if pruner_name != "none":
        config.pruner = pruner_section(pruner_name, sparsity=0.6)
    config.tokenizer.vocab_size = 30
    options = {"radix_base": 4} if tokenizer_name == "radix" else {}
    config.tokenizer.update(options)
    tokenizer = train_tokenizer(config.tokenizer, CAPTIONS, directory / "tokenizer")
    model = make_model(model_config(config, tokenizer.vocab_size))
    rng = np.random.default_rng(3)
    params = jax.tree.map(
        lambda leaf: rng.normal(0.0, 0.6, leaf.shape).astype(np.float32), abstract_params(model)
    )
    return write_run(directory, config, tokenizer, model, params, _draw_masks(config, params, rng))


def _draw_masks(config, params, rng):
    """Logits around 0 of supermasks, zeros and ones of other methods."""
    pruner = make_pruner(config.pruner, total_steps=100, steps_per_epoch=10)
    masks = pruner.init(jax.random.key(0), params).masks
    logits = jax.tree.map(lambda leaf: rng.normal(0.0, 2.0, leaf.shape).astype(np.float32), masks)
    return logits if pruner.trains_masks else jax.tree.map(lambda m: np.float32(m > 0), logits)


def golden_run(directory, case, tokenizer_dir):
    """A run directory with the weights and masks of a figure of the reference."""
    theirs = cases.config_of(case)
    tokenizer = make_tokenizer("word", tokenizer_dir)
    config = run_config(theirs, tokenizer.vocab_size)
    model, variables = cases.load(case)
    return write_run(directory, config, tokenizer, model, variables["params"], variables["masks"])


def write_run(directory, config, tokenizer, model, params, masks):
    """Save the weights as a finished run has them, and a checkpoint of the raw variables."""
    pruner = make_pruner(config.pruner, total_steps=1, steps_per_epoch=1)
    binary = jax.device_get(pruner.binarize(masks)) if masks else {}
    pruned = jax.device_get(finalize(params, binary))
    run = LoadedRun(config, tokenizer, model, pruned, binary)
    save_run(directory, run)
    checkpoints = Checkpoints(directory)
    state = TrainState(jnp.int32(1), params, PruneState(masks, {}), {}, jax.random.key(0))
    checkpoints.save(state, score=1.0, data={}, info={})
    checkpoints.wait()
    checkpoints.close()
    return run
