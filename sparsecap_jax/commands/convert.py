"""Runs in other forms, and checkpoints of the PyTorch reference as runs of ours."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from sparsecap_jax.errors import SparsecapError
from sparsecap_jax.interop import reference as interop
from sparsecap_jax.interop.checkpoint_dir import open_checkpoint_dir
from sparsecap_jax.pruning import PRUNERS, make_pruner
from sparsecap_jax.pruning.masks import finalize
from sparsecap_jax.pruning.summary import weight_counts
from sparsecap_jax.runs import config as sections
from sparsecap_jax.runs.compaction import compact_run
from sparsecap_jax.runs.directory import (
    LoadedRun,
    load_run,
    prunable_masks,
)
from sparsecap_jax.runs.finished import present_weights
from sparsecap_jax.runs.outputs import check_output, write_run
from sparsecap_jax.runs.published import resolve_run
from sparsecap_jax.runs.weights import load_weights


def convert_run(
    source: str | pathlib.Path,
    output: str | pathlib.Path,
    *,
    weights: str = "float32",
    compact: bool = False,
    step: int | str = "best",
    report: Callable[[str], None] = print,
) -> pathlib.Path:
    """Write a run with its weights in another form.

    Args:
        source: run directory, model file, or name of a captioner of the package.
        output: what to write, which may not exist or must be empty: a model file if it ends with
            `.scap`, else a run directory.
        weights: form of the weights, see `runs.directory.save_finished`; a model file has
            "float32", "float16" or "int8".
        compact: whether units that pruning has left dead are taken out, see `runs.compaction`.
        step: its weights: "best", "last", or the step of a checkpoint.
        report: takes one line of progress.

    Raises:
        CheckpointError: there is no run or no such step, or `output` is in use.
        ConfigError: another form than a model file has, or `compact` and a model of another kind.
    """
    output, run = check_output(output), load_run(resolve_run(source), step)
    if compact:
        before, run = run, compact_run(run)
        report(_compacted(before, run))
    size = write_run(output, run, weights)
    written = load_weights(present_weights(output))
    counts = weight_counts(written["params"], written["masks"])
    if "kept" in counts:
        zeros = counts["kept"] - counts["nonzeros"]
        report(
            f"{zeros:,} of {counts['kept']:,} kept weights are 0 (rounding can make small ones 0)"
        )
    report(f"{weights}; wrote {output} ({size:,} bytes)")
    return output


def _compacted(before: LoadedRun, after: LoadedRun) -> str:
    """Return a line on what `compact` has taken out."""
    sizes = [sum(x.size for x in jax.tree.leaves(run.params)) for run in (before, after)]
    widths = [
        f"{field} {old} to {new}"
        for field, new in after.config.model.items()
        if (old := before.config.model[field]) != new
    ]
    shown = ", ".join(widths) or "no unit is dead"
    return f"compact: {sizes[0]:,} to {sizes[1]:,} parameters ({shown})"


def import_reference(
    source: str | pathlib.Path,
    output: str | pathlib.Path,
    report: Callable[[str], None] = print,
    *,
    weights: str = "float32",
) -> LoadedRun:
    """Import a folder or zip with config.json, `*.pth` and tokenizer/.

    Masks are applied to the weights (supermask logits after rounding), as the reference does for
    its published checkpoints. In a run directory, `imported.json` keeps what has no other place:
    the reference's config, training settings included, and the scores that came with it. For
    `output` and `weights` see `convert_run`.

    Raises:
        CheckpointError: the source is corrupt or incomplete, or `output` is in use.
        ConfigError: a model, tokenizer or form that we do not have.
    """
    output = check_output(output)
    checkpoint = open_checkpoint_dir(source)
    try:
        model, variables = interop.load_state_dict(checkpoint.state_dict, checkpoint.config)
        tokenizer = checkpoint.load_tokenizer(interop.tokenizer_config(checkpoint.config))
        config = run_config(checkpoint.config, tokenizer.vocab_size)
    except SparsecapError as error:
        if str(error).startswith(checkpoint.source):
            raise
        raise type(error)(f"{checkpoint.source}: {error}") from error
    masks = {}
    if variables["masks"]:
        pruner = make_pruner(config.pruner, total_steps=1, steps_per_epoch=1)
        masks = jax.device_get(pruner.binarize(variables["masks"]))
    params = jax.device_get(finalize(variables["params"], masks))
    if not masks and config.pruner.name != "none":  # applied already, as published
        masks = prunable_masks(params, {}, config.pruner)
    run = LoadedRun(config, tokenizer, model, params, masks)
    note: dict[str, Any] = {"source": checkpoint.source, "weights": checkpoint.weights}
    note |= {"config": checkpoint.config, "scores": checkpoint.scores}
    size = write_run(output, run, weights, note)
    counts = weight_counts(params)
    shown = f"{counts['nonzeros']:,} nonzero weights, sparsity {counts['sparsity']:.4f}"
    name = checkpoint.config["caption_model"]
    report(f"{name}: {shown}; wrote {output} ({size:,} bytes)")
    return run


def run_config(reference: Mapping[str, Any], vocab_size: int) -> ConfigDict:
    """Return the config of a run directory for a reference config.json of any version.

    Training settings that do not matter for using the model keep their defaults; the vocabulary of
    the model is only set where it differs from `vocab_size`, the tokenizer's.
    """
    upgraded = interop.upgrade_config(reference)
    reserved, fields = sections.FROM_ELSEWHERE, interop.model_config(reference)
    if fields["vocab_size"] == vocab_size:
        reserved = (*reserved, "vocab_size")
    fields = {name: value for name, value in fields.items() if name not in reserved}
    config = sections.default_config()
    with config.unlocked():
        options = interop.tokenizer_config(upgraded)
        config.tokenizer = sections.tokenizer_section(options.pop("name"), **options)
        config.model = sections.model_section(fields.pop("name"), **fields)
        name = upgraded.get("prune_type") or "none"
        if upgraded["caption_model"].endswith("_prune") and str(name) in PRUNERS:
            target = interop.number(upgraded, "prune_sparsity_target", float, 0.8)
            config.pruner = sections.pruner_section(name, sparsity=target)
    length = interop.number(upgraded, "max_seq_length", default=config.max_seq_length)
    config.max_seq_length = length
    config.data.feature_size = interop.number(upgraded, "att_feat_size")
    return config
