"""A checkpoint of the PyTorch reference as a run directory of ours (`launch/convert.py`)."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.interop.checkpoint_dir import open_checkpoint_dir
from sparsecap_jax.interop.reference import (
    load_state_dict,
    model_config,
    tokenizer_config,
    upgrade_config,
)
from sparsecap_jax.pruning import PRUNERS, make_pruner
from sparsecap_jax.pruning.masks import finalize
from sparsecap_jax.runs.config import (
    FROM_ELSEWHERE,
    default_config,
    model_section,
    pruner_section,
    tokenizer_section,
)
from sparsecap_jax.runs.directory import LoadedRun, save_run, weight_counts


def import_reference(
    source: str | pathlib.Path,
    output: str | pathlib.Path,
    report: Callable[[str], None] = print,
) -> LoadedRun:
    """Import a folder or zip with config.json, `*.pth` and tokenizer/.

    Masks are applied to the weights (supermask logits after rounding), as the reference does for
    its published checkpoints.

    Raises:
        CheckpointError: the source is corrupt or incomplete, or the run directory `output` exists.
        ConfigError: a model or tokenizer that we do not have.
    """
    output = pathlib.Path(output)
    if (output / "config.json").exists():
        raise CheckpointError(f"{output}: holds a run already; expected a new directory")
    checkpoint = open_checkpoint_dir(source)
    model, variables = load_state_dict(checkpoint.dense_state_dict(), checkpoint.config)
    tokenizer = checkpoint.load_tokenizer(tokenizer_config(checkpoint.config))
    config = run_config(checkpoint.config, tokenizer.vocab_size)
    masks = {}
    if variables["masks"]:
        pruner = make_pruner(config.pruner, total_steps=1, steps_per_epoch=1)
        masks = jax.device_get(pruner.binarize(variables["masks"]))
    params = jax.device_get(finalize(variables["params"], masks))
    run = LoadedRun(config, tokenizer, model, params, masks)
    size = save_run(output, run)
    counts = weight_counts(params)
    report(
        f"{checkpoint.config['caption_model']}: {counts['nonzeros']:,} nonzero weights, sparsity "
        f"{counts['sparsity']:.4f}; wrote {output} ({size:,} bytes of weights)"
    )
    return run


def run_config(reference: Mapping[str, Any], vocab_size: int) -> ConfigDict:
    """Return the config of a run directory for a reference config.json of any version.

    Training settings that do not matter for using the model keep their defaults; the vocabulary of
    the model is only set where it differs from `vocab_size`, the tokenizer's.
    """
    upgraded = upgrade_config(reference)
    fields = {k: v for k, v in model_config(reference).items() if k not in FROM_ELSEWHERE}
    if fields["vocab_size"] == vocab_size:
        del fields["vocab_size"]
    config = default_config()
    with config.unlocked():
        options = tokenizer_config(upgraded)
        config.tokenizer = tokenizer_section(options.pop("name"), **options)
        config.model = model_section(fields.pop("name"), **fields)
        name = upgraded.get("prune_type") or "none"
        if upgraded["caption_model"].endswith("_prune") and name in PRUNERS:
            target = float(upgraded.get("prune_sparsity_target", 0.8))
            config.pruner = pruner_section(name, sparsity=target)
    config.max_seq_length = int(upgraded.get("max_seq_length", config.max_seq_length))
    config.data.feature_size = int(upgraded["att_feat_size"])
    return config
