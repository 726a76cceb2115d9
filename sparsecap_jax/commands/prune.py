"""Post-training pruning of a captioner (`sparsecap prune`)."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from sparsecap_jax.captioner import Captioner
from sparsecap_jax.commands.report import layer_lines
from sparsecap_jax.data.datasets import Dataset, load_dataset
from sparsecap_jax.errors import CheckpointError, ConfigError
from sparsecap_jax.pruning import Pruner, make_pruner, prune_layers, summarize
from sparsecap_jax.pruning.layerwise import layer_structure
from sparsecap_jax.pruning.paths import by_path, select, show
from sparsecap_jax.pruning.summary import weight_counts
from sparsecap_jax.runs.calibration import calibration_batches, captioner_inputs
from sparsecap_jax.runs.config import pruner_section
from sparsecap_jax.runs.directory import LoadedRun, load_run, prunable_masks
from sparsecap_jax.runs.finished import finished_weights
from sparsecap_jax.runs.outputs import check_output, write_run
from sparsecap_jax.runs.overrides import change_data
from sparsecap_jax.runs.published import resolve_run
from sparsecap_jax.settings import Range, check_range, nearest
from sparsecap_jax.types import PyTree

WITHOUT_DATA = ("mag_blind", "mag_uniform", "mag_dist")
WITH_DATA = ("wanda", "sparsegpt")
METHODS = (*WITHOUT_DATA, *WITH_DATA)


def prune_captioner(
    checkpoint: str | pathlib.Path,
    output: str | pathlib.Path,
    method: str,
    sparsity: float,
    *,
    sparsity_type: str = "unstructured",
    exclude: Sequence[str] = (),
    batches: int = 8,
    changes: Sequence[str] = (),
    dataset: Dataset | None = None,
    overwrite: bool = False,
    report: Callable[[str], None] = print,
) -> pathlib.Path:
    """Prune a trained captioner at once, without any training.

    Args:
        checkpoint: run directory, model file, or name of a captioner of the package.
        output: what to write: a model file if it ends with `.scap`, else a run directory.
        method: smallest magnitudes over all tensors (`mag_blind`), of each (`mag_uniform`) or after
            standardising each (`mag_dist`); or from calibration batches, layer by layer, `wanda` or
            `sparsegpt`, see `pruning.second_order`.
        sparsity: fraction of the prunable weights that goes; more than the captioner has.
        sparsity_type: see `pruning.structures`; N:M is along the inputs, and all that `wanda` and
            `sparsegpt` have.
        exclude: patterns of leaves that stay dense, besides those of the run's config.
        batches: calibration batches: the first of training, by the config's dataset and seed.
        changes: `data.FIELD=VALUE`, where the dataset is another than the config says.
        dataset: the dataset, if it is open already.
        overwrite: see `runs.outputs.check_output`.
        report: takes one line at a time.

    Returns:
        The path of the output. The pruner of its config is the method, or `mask_freeze` for those
        that no training has.

    Raises:
        ConfigError: a faulty option, or the captioner is as sparse already.
        CheckpointError: there is no run, it is damaged, or `output` is in use.
        DataError: the dataset is missing or damaged.
    """
    _check_options(method, sparsity, sparsity_type, batches)
    output, source = check_output(output, overwrite), resolve_run(checkpoint)
    if output.exists() and source.exists() and output.samefile(source):
        raise CheckpointError(f"{output}: the run to prune; expected another output")
    run = load_run(source)
    section = _section(run.config.pruner, method, sparsity, sparsity_type, exclude)
    pruner = make_pruner(section, total_steps=1)
    before = weight_counts(run.params, run.masks)
    already = f"sparsity is {sparsity}, but {checkpoint} has {before['sparsity']:.4f} already"
    if before["sparsity"] >= sparsity:
        raise ConfigError(f"{already}; expected more")
    if method in WITH_DATA:
        data = change_data(run.config, changes)
        chosen = method, pruner, sparsity_type, batches
        found = _calibrated(run, data, *chosen, dataset, report)
        section = pruner_section(
            "mask_freeze", sparsity=sparsity, include=pruner.include, exclude=pruner.exclude
        )
    else:
        found = pruner.instant_sparsify(run.params)
    params, masks = jax.device_get(found)
    after = weight_counts(params, masks)
    if after["nonzeros"] >= before["nonzeros"]:
        raise ConfigError(f"{already}: nothing else would go; expected more")
    config = run.config.copy_and_resolve_references()
    with config.unlocked():
        config.pruner = section
    run = dataclasses.replace(run, config=config, params=params, masks=masks)
    for line in layer_lines(summarize(params, prunable_masks(params, masks, section))):
        report(line)
    size, file = write_run(output, run), finished_weights(source)
    was = f"{file.stat().st_size:,} bytes" if file else "a checkpoint"
    report(
        f"wrote {output}: {after['nonzeros']:,} nonzeros, {size:,} bytes; "
        f"before: {before['nonzeros']:,}, {was}"
    )
    return output


def _check_options(method: str, sparsity: float, sparsity_type: str, batches: int) -> None:
    """Raise a ConfigError where options are faulty, before anything is loaded."""
    if method not in METHODS:
        raise ConfigError(f"method is {method!r}; {nearest(method, METHODS)}")
    check_range("sparsity", sparsity, Range(0.0, 1.0, open_low=True, open_high=True))
    check_range("batches", batches, Range(1))
    if method in WITH_DATA:
        layer_structure(sparsity, sparsity_type)


def _section(
    old: ConfigDict, method: str, sparsity: float, sparsity_type: str, exclude: Sequence[str]
) -> ConfigDict:
    """Return the section of a magnitude method that prunes the leaves of an older section."""
    return pruner_section(
        "mag_uniform" if method in WITH_DATA else method,
        sparsity=sparsity,
        include=tuple(old.include),
        exclude=(*old.exclude, *exclude),
        sparsity_type=sparsity_type,
        sparsity_axis=-1 if sparsity_type == "channels" else -2,
    )


def _calibrated(
    run: LoadedRun,
    config: ConfigDict,
    method: str,
    pruner: Pruner,
    sparsity_type: str,
    batches: int,
    dataset: Dataset | None,
    report: Callable[[str], None],
) -> tuple[PyTree, PyTree]:
    """Return the weights and masks that calibration batches give."""
    captioner = Captioner(dataclasses.replace(run, config=config))
    captioner.check_features(config.data.features or config.data.dir)
    dataset = dataset or load_dataset(config.data, need_boxes=captioner.needs_boxes)
    given = calibration_batches(config, dataset, run.tokenizer, batches)
    wanted = {show(path) for path in select(run.params, pruner.include, pruner.exclude)}
    all_inputs = captioner_inputs(run.model)

    def inputs_of(params: PyTree, batch: Any) -> dict[str, Any]:
        inputs = all_inputs(params, batch)
        return {name: inputs[name] for name in inputs if name in wanted}

    report(f"{method}: {len(wanted)} tensors, {batches} batches of {config.data.batch_size} images")
    params, masks = prune_layers(
        run.params, inputs_of, given, pruner.sparsity, method=method, sparsity_type=sparsity_type
    )
    for name in sorted(wanted - {show(path) for path in by_path(masks)}):
        report(f"stays dense: {name}, whose inputs are not known")
    return params, masks
