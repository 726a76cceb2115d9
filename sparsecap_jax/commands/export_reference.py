"""A run directory of ours as a checkpoint folder of the PyTorch reference (`launch/convert.py`).

The folder holds what the reference's scripts look for: `config.json` in its newest form, one
`model_best*.pth`, and `tokenizer/`.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from sparsecap_jax.errors import CheckpointError, ConfigError
from sparsecap_jax.interop.checkpoint_dir import save_checkpoint_dir
from sparsecap_jax.interop.reference import (
    export_state_dict,
    has_pruned_class,
    reference_config,
    rules,
    tokenizer_fields,
)
from sparsecap_jax.pruning import Pruner, make_pruner
from sparsecap_jax.pruning.paths import select
from sparsecap_jax.runs.config import model_config
from sparsecap_jax.runs.directory import LoadedRun, load_raw_variables, load_run
from sparsecap_jax.torch_files import SparseTensor

# Suffixes that the reference gives to weights files.
_MASKS = {"applied": "_pruned", "binary": "_bin_mask", "raw": ""}
_FORMS = {"dense": "", "sparse": "_sparse"}

# Keys that the reference's evaluation reads and runs of ours do not have.
_DEFAULTS = {
    "dataset": "mscoco",
    "dataset_dir": "",
    "input_att_dir": None,
    "input_fc_dir": None,
    "input_rel_box_dir": None,
    "log_dir": "",
    "start_from": "",
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
    report: Callable[[str], None] = print,
) -> pathlib.Path:
    """Write a checkpoint folder that the reference loads with `strict=True`.

    Args:
        source: run directory of ours, finished or not.
        output: folder to write; it may not exist, or must be empty.
        form: "dense", or "sparse": the prunable weights as COO tensors, as published.
        masks: "applied": weights with zeros where they are pruned, no masks, as published (for the
            reference's dense classes: its `eval_model.py` drops `_prune` from `caption_model`);
            "binary": the same weights, and masks of zeros and ones; "raw": weights and masks as
            they were trained (logits of supermasks), from `checkpoints/`.
        report: takes one line of progress at a time.

    Returns:
        The path of the weights file.

    Raises:
        CheckpointError: there is no run, its weights are missing or do not fit its config, it has
            no checkpoints ("raw"), or `output` is in use.
        ConfigError: the reference has no such model or no class of it with masks, or the model is
            dense and the masks or the form concern pruned ones.
    """
    output = pathlib.Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CheckpointError(f"{output}: exists; expected a new or empty folder to write to")
    run = load_run(source)
    config = checkpoint_config(run, masks=masks)
    file = _weights_name(run, form, masks)
    variables = _variables(run, pathlib.Path(source), masks)
    state: dict[str, Any] = export_state_dict(variables, config, buffers=True)
    if form == "sparse":
        state = _sparse(state, run, config)
    save_checkpoint_dir(output, config, file, state, run.tokenizer)
    size = (output / file).stat().st_size
    report(
        f"{config['caption_model']}: {len(state)} tensors; wrote {output / file} ({size:,} bytes)"
    )
    return output / file


def checkpoint_config(run: LoadedRun, *, masks: str = "applied") -> dict[str, Any]:
    """Return the reference's config.json for a run: model, tokenizer, pruning, decoding.

    For other training settings the reference takes its own defaults. Folders of data are left
    empty: its scripts find them with `--dataset_dir`. For `masks` see `export_reference`.

    Raises:
        ConfigError: the reference has no such model, or no class of it with masks.
    """
    config = run.config
    model = model_config(config, run.tokenizer.vocab_size)
    pruned = _is_pruned(config) and (masks != "applied" or has_pruned_class(model))
    return {
        **reference_config(model, pruned=pruned),
        **tokenizer_fields(run.tokenizer),
        "max_seq_length": config.max_seq_length,
        "seq_per_img": config.data.seq_per_img,
        "batch_size": config.data.batch_size,
        "batch_size_eval": config.data.eval_batch_size,
        "beam_size_val": config.eval.beam_size_val,
        "beam_size_test": config.eval.beam_size_test,
        "length_penalty": config.eval.length_penalty,
        "seed": config.seed,
        **_DEFAULTS,
        **(_pruner_fields(config) if pruned else {}),
    }


def _is_pruned(config: ConfigDict) -> bool:
    return config.pruner.name != "none"


def _make_pruner(config: ConfigDict) -> Pruner:
    return make_pruner(config.pruner, total_steps=1, steps_per_epoch=1)


def _pruner_fields(config: ConfigDict) -> dict[str, Any]:
    pruner = config.pruner
    return {
        # The reference has no "mag_grad_dist"; with "mask_freeze" masks stay as they are.
        "prune_type": "mask_freeze" if pruner.name == "mag_grad_dist" else pruner.name,
        "prune_sparsity_target": pruner.sparsity,
        "prune_supermask_init": _make_pruner(config).init_value,
        "prune_supermask_bypass_sigmoid_grad": pruner.get("bypass_sigmoid_grad", False),
        "prune_mask_freeze_scope": "",
    }


def _weights_name(run: LoadedRun, form: str, masks: str) -> str:
    """Name of the weights file, for combinations that make sense."""
    for value, names, name in ((form, _FORMS, "form"), (masks, _MASKS, "masks")):
        if value not in names:
            raise ConfigError(f"{name} is {value!r}; expected one of {', '.join(names)}")
    if not _is_pruned(run.config):
        if (masks, form) != ("applied", "dense"):
            raise ConfigError(
                "config.pruner.name is 'none': a dense model has no masks and nothing to store "
                "sparse; expected form 'dense' and masks 'applied'"
            )
        return "model_best.pth"
    if (masks, form) == ("raw", "sparse"):
        raise ConfigError("masks 'raw' keep every weight; expected form 'dense' with them")
    return f"model_best{_MASKS[masks]}{_FORMS[form]}.pth"


def _variables(run: LoadedRun, source: pathlib.Path, masks: str) -> dict[str, Any]:
    """Params and masks to export: each prunable weight has a mask, or none has."""
    if masks == "applied":
        return {"params": run.params, "masks": {}}
    variables, keep = {"params": run.params, "masks": run.masks}, None
    if masks == "raw":
        variables = jax.device_get(load_raw_variables(source))
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
    names = {rule.reference for rule in rules(config) if rule.path in paths}
    arrays = {id(state[name]): state[name] for name in names}
    tensors = {key: SparseTensor.from_dense(array) for key, array in arrays.items()}
    return {k: tensors[id(v)] if k in names else v for k, v in state.items()}
