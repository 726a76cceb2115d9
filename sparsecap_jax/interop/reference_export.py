"""A run directory of ours as a checkpoint folder of the PyTorch reference.

The folder holds what the reference's scripts look for: `config.json` in its newest form, one
`model_best*.pth`, and `tokenizer/`. The weights file bears the name that the reference gives to
such weights:

| masks | form "dense" | form "sparse" |
|---|---|---|
| applied | `model_best_pruned.pth` | `model_best_pruned_sparse.pth` |
| binary | `model_best_bin_mask.pth` | `model_best_bin_mask_sparse.pth` |
| raw, or a dense model | `model_best.pth` | - |
"""

import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from sparsecap_jax.errors import CheckpointError, ConfigError
from sparsecap_jax.files import write_json
from sparsecap_jax.interop.reference import (
    export_state_dict,
    has_pruned_class,
    reference_config,
    rules,
)
from sparsecap_jax.pruning import Pruner, make_pruner
from sparsecap_jax.pruning.paths import select
from sparsecap_jax.runs.config import model_config
from sparsecap_jax.runs.directory import LoadedRun, load_raw_variables, load_run
from sparsecap_jax.tokenizers import Tokenizer
from sparsecap_jax.torch_files.torch_file import write_torch_file
from sparsecap_jax.torch_files.torch_tensors import SparseTensor

FORMS = ("dense", "sparse")
MASKS = ("applied", "binary", "raw")

# What the reference lacks, and what serves it: masks that are given stay as they are.
_PRUNE_TYPES = {"mag_grad_dist": "mask_freeze"}
_SPECIAL_TOKENS = ("bos", "eos", "unk", "pad")


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
            "binary": the same weights, and masks of zeros and ones beside them; "raw": weights
            and masks as they were trained (logits of supermasks), from `checkpoints/`.
        report: takes one line of progress at a time.

    Returns:
        The path of the weights file.

    Raises:
        CheckpointError: there is no run, its weights are missing or do not fit its config, it has
            no checkpoints ("raw"), or `output` is in use.
        ConfigError: the reference has no such model, no class of it with masks, or nothing is
            pruned that the masks or the form could speak of.
    """
    output = pathlib.Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CheckpointError(f"{output}: exists; expected a new or empty folder to write to")
    run = load_run(source)
    config = checkpoint_config(run, masks=masks)
    file = _weights_name(run, form, masks)
    state = _state_dict(run, pathlib.Path(source), config, masks)
    if form == "sparse":
        state = _sparse(state, _sparse_names(run, config))
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        written = pathlib.Path(folder) / "checkpoint"
        write_torch_file(written / file, state)
        run.tokenizer.save(written / "tokenizer")
        write_json(written / "config.json", config)
        if output.exists():
            output.rmdir()
        shutil.move(os.fspath(written), output)
    size = (output / file).stat().st_size
    report(
        f"{config['caption_model']}: {len(state)} tensors; wrote {output / file} ({size:,} bytes)"
    )
    return output / file


def checkpoint_config(run: LoadedRun, *, masks: str = "applied") -> dict[str, Any]:
    """The reference's config.json for a run: model, tokenizer, pruning, and how to decode.

    Other training settings are not described; the reference takes its own defaults. Folders of
    data are left empty: its scripts find them with `--dataset_dir`.

    Args:
        run: the run.
        masks: as in `export_reference`.

    Raises:
        ConfigError: the reference has no such model, or no class of it with masks.
    """
    config = run.config
    model = model_config(config, run.tokenizer.vocab_size)
    pruned = _is_pruned(config) and (masks != "applied" or has_pruned_class(model))
    found = {
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
    }
    return {**found, **(_pruner_fields(config) if pruned else {})}


# Keys that the reference's evaluation reads, where a run of ours has nothing to say.
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


def tokenizer_fields(tokenizer: Tokenizer) -> dict[str, Any]:
    """The keys that a tokenizer of the reference leaves in its config."""
    radix = tokenizer.name == "radix"
    fields: dict[str, Any] = {"tokenizer": _TOKENIZERS.get(tokenizer.name, tokenizer.name)}
    if radix:
        fields["radix_base"] = tokenizer.radix_base
    for name in _SPECIAL_TOKENS:
        fields[f"{name}_token"] = f"<{name}>"
        fields[f"{name}_token_id"] = getattr(tokenizer, f"{name}_id")
    # A word of several digits has no single id: the reference has none for UNK then, even if
    # words have one digit only.
    if radix:
        fields["unk_token"] = fields["unk_token_id"] = None
    fields["mask_token"], fields["mask_token_id"] = fields["unk_token"], fields["unk_token_id"]
    return {
        **fields,
        "user_defined_symbols": None,
        "num_control_symbols": 0,
        "num_special_symbols": len(_SPECIAL_TOKENS),
    }


_TOKENIZERS = {"char": "character"}


def _is_pruned(config: ConfigDict) -> bool:
    return config.pruner.name != "none"


def _make_pruner(config: ConfigDict) -> Pruner:
    return make_pruner(config.pruner, total_steps=1, steps_per_epoch=1)


def _pruner_fields(config: ConfigDict) -> dict[str, Any]:
    pruner = config.pruner
    return {
        "prune_type": _PRUNE_TYPES.get(pruner.name, pruner.name),
        "prune_sparsity_target": pruner.sparsity,
        "prune_supermask_init": _make_pruner(config).init_value,
        "prune_supermask_bypass_sigmoid_grad": pruner.get("bypass_sigmoid_grad", False),
        "prune_mask_freeze_scope": "",
    }


def _weights_name(run: LoadedRun, form: str, masks: str) -> str:
    """Name of the weights file, for combinations that make sense."""
    for value, known, name in ((form, FORMS, "form"), (masks, MASKS, "masks")):
        if value not in known:
            raise ConfigError(f"{name} is {value!r}; expected one of {', '.join(known)}")
    if not _is_pruned(run.config) and (masks != "applied" or form == "sparse"):
        raise ConfigError(
            "config.pruner.name is 'none': a dense model has no masks and nothing to store sparse; "
            "expected form 'dense' and masks 'applied'"
        )
    if masks == "raw" and form == "sparse":
        raise ConfigError("masks 'raw' keep every weight; expected form 'dense' with them")
    names = {"applied": "model_best_pruned", "binary": "model_best_bin_mask", "raw": "model_best"}
    stem = names[masks] if _is_pruned(run.config) else "model_best"
    return stem + ("_sparse.pth" if form == "sparse" else ".pth")


def _state_dict(
    run: LoadedRun, source: pathlib.Path, config: Mapping[str, Any], masks: str
) -> dict[str, np.ndarray]:
    """All tensors by the reference's names, dense."""
    variables = {"params": run.params, "masks": {}}
    if masks == "raw":
        variables = jax.device_get(load_raw_variables(source))
        keep = _make_pruner(run.config).init_value
        variables["masks"] = _complete(variables, lambda leaf: np.full_like(leaf, keep))
    elif masks == "binary":
        found = {"params": run.params, "masks": run.masks}
        variables["masks"] = _complete(found, lambda leaf: np.float32(leaf != 0))
    return export_state_dict(variables, config, buffers=True)


def _complete(
    variables: Mapping[str, Any], make: Callable[[np.ndarray], np.ndarray]
) -> dict[str, Any]:
    """A mask for each prunable weight, as in the reference's classes; `make` makes missing ones."""
    leaves, masks = flatten_dict(variables["params"]), flatten_dict(variables["masks"])
    paths = select(variables["params"])
    return unflatten_dict(
        {path: masks[path] if path in masks else make(np.asarray(leaves[path])) for path in paths}
    )


def _sparse_names(run: LoadedRun, config: Mapping[str, Any]) -> set[str]:
    """Reference names of the weights that the run's pruner prunes."""
    pruner = run.config.pruner
    chosen = set(select(run.params, tuple(pruner.include), tuple(pruner.exclude)))
    return {rule.reference for rule in rules(config) if rule.path in chosen}


def _sparse(state: Mapping[str, np.ndarray], names: set[str]) -> dict[str, Any]:
    """Put COO tensors in place of the arrays of `names`; shared arrays stay shared."""
    made: dict[int, SparseTensor] = {}
    for name in names:
        array = state[name]
        if id(array) not in made:
            made[id(array)] = SparseTensor.from_dense(array)
    return {k: made[id(v)] if k in names else v for k, v in state.items()}
