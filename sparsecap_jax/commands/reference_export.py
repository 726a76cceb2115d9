"""Runs of ours as checkpoint folders for PyTorch, by the reference's names of tensors."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from sparsecap_jax.errors import CheckpointError, ConfigError
from sparsecap_jax.files import unused
from sparsecap_jax.interop import reference as interop
from sparsecap_jax.interop.checkpoint_dir import save_checkpoint_dir
from sparsecap_jax.interop.torch_prune import to_torch_prune
from sparsecap_jax.pruning import Pruner, make_pruner
from sparsecap_jax.pruning.paths import select
from sparsecap_jax.runs import config as sections
from sparsecap_jax.runs.directory import LoadedRun, load_raw_variables, load_run
from sparsecap_jax.runs.finished import MODEL_SUFFIX
from sparsecap_jax.runs.published import resolve_run
from sparsecap_jax.runs.weights import SAFETENSORS
from sparsecap_jax.torch_files import SparseTensor

# Suffixes that the reference gives to weights files.
_MASKS = {"applied": "_pruned", "binary": "_bin_mask", "raw": ""}


_FORMS = {"dense": "", "sparse": "_sparse"}


TARGETS = ("reference", "torch_prune", "safetensors")


# Keys that the reference's evaluation reads and runs of ours do not have.
_DEFAULTS = {
    "dataset": "mscoco",
    **dict.fromkeys(("dataset_dir", "log_dir", "start_from"), ""),
    **dict.fromkeys(("input_att_dir", "input_fc_dir", "input_rel_box_dir")),
    "tokenizer_train_files": None,
    "num_workers": 0,
    "cache_min_free_ram": 1.0,
    "retokenize_captions": False,
    "scst_baseline": "sample",
    "scst_sample": "random",
}


def export_reference(
    source: str | pathlib.Path,
    output: str | pathlib.Path,
    *,
    form: str = "dense",
    masks: str = "applied",
    target: str = "reference",
    report: Callable[[str], None] = print,
) -> pathlib.Path:
    """Write a checkpoint folder for PyTorch, by the reference's names of tensors.

    It holds `config.json` in its newest form, one `model_best*`, and `tokenizer/`. Its state dict
    loads with `strict=True`.

    Args:
        source: run directory of ours, finished or not, or name of a captioner of the package.
        output: folder to write; it may not exist, or must be empty.
        form: "dense", or "sparse": the prunable weights as COO tensors, as published.
        masks: "applied": weights with zeros where they are pruned, no masks, as published (for the
            reference's dense classes: its `eval_model.py` drops `_prune` from `caption_model`);
            "binary": the same weights, and masks of zeros and ones; "raw": weights and masks as
            they were trained (logits of supermasks), from `checkpoints/`.
        target: "reference": a `.pth` of the reference; "torch_prune": `model_best_torch_prune.pth`,
            which has `weight_orig` and `weight_mask` as `torch.nn.utils.prune` names them, of the
            dense class; "safetensors": the tensors of "reference" as `model_best*.safetensors`.
        report: takes one line of progress at a time.

    Returns:
        The path of the weights file.

    Raises:
        CheckpointError: there is no run, its weights are missing or do not fit its config, it has
            no checkpoints ("raw"), or `output` is in use.
        ConfigError: the reference has no such model or no class of it with masks, or the model is
            dense and the masks or the form concern pruned ones; or the target has no such form.
    """
    _check_target(target, form, masks)
    output = unused(output, MODEL_SUFFIX)
    source = resolve_run(source)
    run = load_run(source)
    config = checkpoint_config(run, masks=masks)
    if target == "torch_prune":
        masks = "binary"
    file = _weights_name(run, form, masks)
    variables = _variables(run, pathlib.Path(source), masks)
    state: dict[str, Any] = interop.export_state_dict(variables, config, buffers=True)
    if form == "sparse":
        state = _sparse(state, run, config)
    if target == "torch_prune":
        state, file = to_torch_prune(state), "model_best_torch_prune.pth"
    elif target == "safetensors":
        file = file.replace(".pth", SAFETENSORS)
    save_checkpoint_dir(output, config, file, state, run.tokenizer)
    path = output / file
    tensors = f"{config['caption_model']}: {len(state)} tensors"
    report(f"{tensors}; wrote {path} ({path.stat().st_size:,} bytes)")
    return path


def _check_target(target: str, form: str, masks: str) -> None:
    """Raise a ConfigError where there is no such target, or it has no such form or masks."""
    if target not in TARGETS:
        raise ConfigError(f"target is {target!r}; expected one of {', '.join(TARGETS)}")
    if target != "reference" and form == "sparse":
        raise ConfigError(f"target {target!r} has dense tensors; expected form 'dense'")
    if target == "torch_prune" and masks != "applied":
        raise ConfigError("target 'torch_prune' has binary masks; expected masks 'applied'")


def checkpoint_config(run: LoadedRun, *, masks: str = "applied") -> dict[str, Any]:
    """Return the reference's config.json for a run: model, tokenizer, pruning, decoding.

    For other training settings the reference takes its own defaults. Folders of data are left
    empty: its scripts find them with `--dataset_dir`. For `masks` see `export_reference`.

    Raises:
        ConfigError: the reference has no such model, or no class of it with masks.
    """
    config, pruner = run.config, run.config.pruner
    model = sections.model_config(config, run.tokenizer.vocab_size)
    pruned = pruner.name != "none" and (masks != "applied" or interop.has_pruned_class(model))
    result = {
        **interop.reference_config(model, pruned=pruned),
        **interop.tokenizer_fields(run.tokenizer),
        "max_seq_length": config.max_seq_length,
        "seq_per_img": config.data.seq_per_img,
        "batch_size": config.data.batch_size * config.train.accumulate,
        "batch_size_eval": config.data.eval_batch_size,
        "beam_size_val": config.eval.beam_size_val,
        "beam_size_test": config.eval.beam_size_test,
        "length_penalty": config.eval.length_penalty,
        "seed": config.seed,
        **_DEFAULTS,
    }
    if pruned:
        # The reference has no "mag_grad_dist"; with "mask_freeze" masks stay as they are.
        name = "mask_freeze" if pruner.name == "mag_grad_dist" else pruner.name
        result |= {
            "prune_type": name,
            "prune_sparsity_target": pruner.sparsity,
            "prune_supermask_init": _make_pruner(config).init_value,
            "prune_supermask_bypass_sigmoid_grad": pruner.get("bypass_sigmoid_grad", False),
            "prune_mask_freeze_scope": "",
        }
    return result


def _make_pruner(config: ConfigDict) -> Pruner:
    return make_pruner(config.pruner, total_steps=1, steps_per_epoch=1)


def _weights_name(run: LoadedRun, form: str, masks: str) -> str:
    for value, names, name in ((form, _FORMS, "form"), (masks, _MASKS, "masks")):
        if value not in names:
            raise ConfigError(f"{name} is {value!r}; expected one of {', '.join(names)}")
    if run.config.pruner.name == "none":
        if (masks, form) == ("applied", "dense"):
            return "model_best.pth"
        raise ConfigError(
            "config.pruner.name is 'none': a dense model has no masks and nothing to store "
            "sparse; expected form 'dense' and masks 'applied'"
        )
    if (masks, form) == ("raw", "sparse"):
        raise ConfigError("masks 'raw' keep every weight; expected form 'dense' with them")
    return f"model_best{_MASKS[masks]}{_FORMS[form]}.pth"


def _variables(run: LoadedRun, source: pathlib.Path, masks: str) -> dict[str, Any]:
    """Params and masks to export: each prunable weight has a mask, or none has."""
    if masks == "applied":
        return {"params": run.params, "masks": {}}
    variables, keep = {"params": run.params, "masks": run.masks}, None
    if masks == "raw":
        if not (source / "checkpoints").is_dir():
            problem = f"{source}: no checkpoints there, which masks 'raw' are read from"
            raise CheckpointError(f"{problem}; expected masks 'applied' or 'binary'")
        variables = jax.device_get(load_raw_variables(source, expected=run.params))
        keep = _make_pruner(run.config).init_value
    leaves, flat_masks = flatten_dict(variables["params"]), flatten_dict(variables["masks"])
    for path in select(variables["params"]):
        leaf = np.asarray(leaves[path])
        kept = np.float32(leaf != 0) if keep is None else np.full_like(leaf, keep)
        flat_masks.setdefault(path, kept)
    return {**variables, "masks": unflatten_dict(flat_masks)}


def _sparse(
    state: Mapping[str, np.ndarray], run: LoadedRun, config: Mapping[str, Any]
) -> dict[str, Any]:
    """Put COO tensors in place of the weights that the run prunes; shared arrays stay shared."""
    pruner = run.config.pruner
    paths = set(select(run.params, tuple(pruner.include), tuple(pruner.exclude)))
    names = {rule.reference for rule in interop.rules(config) if rule.path in paths}
    tensors = {id(state[name]): SparseTensor.from_dense(state[name]) for name in names}
    return {k: tensors[id(v)] if k in names else v for k, v in state.items()}
