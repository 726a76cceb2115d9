"""The training loop: steps, logs, validation, checkpoints; stops and resumes exactly.

Order on resuming: config checked against the run directory, tokenizer loaded, last checkpoint
restored (params, masks, pruner, optimizer, rng), data iterator set to its position, log rows of
later steps dropped.
"""

import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from sparsecap_jax import stopping
from sparsecap_jax.data.batches import read_ahead
from sparsecap_jax.data.datasets import Dataset
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.evaluation.sparsity_report import write_sparsity_report
from sparsecap_jax.files import write_json
from sparsecap_jax.locks import locked, remove_strays
from sparsecap_jax.models import count_params
from sparsecap_jax.pruning.masks import finalize
from sparsecap_jax.pruning.step import TrainState, warn_unless_begun
from sparsecap_jax.pruning.summary import by_module, summarize, weight_counts
from sparsecap_jax.runs import processes
from sparsecap_jax.runs.checkpoint_items import crc32
from sparsecap_jax.runs.checkpoints import Checkpoints
from sparsecap_jax.runs.directory import LoadedRun, save_finished
from sparsecap_jax.runs.finished import (
    INITIAL_WEIGHTS,
    MODEL,
    PARAMS,
    SUMMARY,
    TOKENIZER,
    read_notes,
)
from sparsecap_jax.runs.finite import FiniteWatch
from sparsecap_jax.runs.first_state import abstract_state, first_state
from sparsecap_jax.runs.live_summary import LiveSummary
from sparsecap_jax.runs.logs import Logs, NoLogs
from sparsecap_jax.runs.profiling import StepTrace
from sparsecap_jax.runs.progress import Progress
from sparsecap_jax.runs.run import Run, claim_workdir, leave_workdir, prepare_run
from sparsecap_jax.runs.saver import Saver
from sparsecap_jax.runs.validation import Validator
from sparsecap_jax.runs.weights import MAX_WEIGHTS, load_weights, save_weights
from sparsecap_jax.text import counted
from sparsecap_jax.training.objectives import Objective
from sparsecap_jax.training.steps import make_train_step
from sparsecap_jax.types import Batch


def train(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    report: Callable[[str], None] = print,
    dataset: Dataset | None = None,
    from_step: int | None = None,
    trace: StepTrace | None = None,
) -> dict:
    """Train as `config` says, continuing where an earlier call with the same config stopped.

    `workdir` then holds `config.json`, `tokenizer/`, `checkpoints/` (best and last), `train.csv`,
    `validation.csv`, `sparsity.csv`, `tensorboard/`, `initial_weights.npz`, and `model.scap`: the
    best model, pruned (the last one where none came within tolerance of its target sparsity), with
    its sizes by module in `params.json` and a report on its masks in `sparsity/`. `summary.html` is
    a page on all of it, current at each validation, and `summary.png` a picture of its end.

    Args:
        config: see `sparsecap_jax.runs.config`.
        workdir: the run directory.
        report: takes one line of progress at a time.
        dataset: the dataset of `config.data`, where it is open already.
        from_step: step of the checkpoint to continue from, by default the last; later ones are
            dropped.
        trace: steps to profile.

    Returns:
        `{"step", "best_step", "validation" (of the best step), "bytes"}`, and the sparsity of the
        finished weights with its denominator, see `pruning.summary.weight_counts`.

    Raises:
        SparsecapError: a fault in config, data or checkpoints, a value that is not finite
            (`NonFiniteError`), or another process that trains there.
        Stopped: a signal came (see `stopping`); the state is saved, and the same call without
            `from_step` continues.
    """
    if not processes.is_first():  # of one job; the first one writes, and holds the lock
        return _train(config, workdir, lambda line: None, dataset, from_step, StepTrace())
    with locked(workdir):
        for folder in (pathlib.Path(workdir), pathlib.Path(workdir, "sparsity")):
            remove_strays(folder, "*.npz", MODEL, TOKENIZER)
            remove_strays(folder, "*.json*", "*.csv", "*.png", "*.html")
        return _train(config, workdir, report, dataset, from_step, trace or StepTrace())


def _train(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    report: Callable[[str], None],
    dataset: Dataset | None,
    from_step: int | None,
    trace: StepTrace,
) -> dict[str, Any]:
    fields = flatten_dict(config.to_dict(), sep=".")
    processes.check_same(
        {**{f"config.{name}": value for name, value in fields.items()}, "--from_step": from_step},
        "expected the same command for all",
    )
    run = prepare_run(config, workdir, dataset, report)
    checkpoints = Checkpoints(run.workdir)
    try:
        state, iterator, skipped = _start(run, checkpoints, from_step)
        claim_workdir(run)
        checkpoints.drop_after(int(state.step))
        watch = FiniteWatch(run, checkpoints, skipped)
        advice = stopping.CONTINUE if from_step is None else stopping.CONTINUE_LAST
        with stopping.deferred(advice):
            _run_steps(run, state, iterator, checkpoints, watch, advice, trace)
            if signal := processes.received_signal():  # during the last validation
                raise stopping.Stopped(signal, advice=advice)
        checkpoints.wait()
        return processes.on_first(lambda: _finish(run, checkpoints))
    finally:
        try:
            checkpoints.close()
        finally:
            leave_workdir(run)


def stack_batches(batches: Sequence[Batch]) -> Batch:
    """Stack batches to leaves `[N, B, ...]`, padded to the largest of their shapes."""

    def stack(*leaves):
        shape = np.max([leaf.shape for leaf in leaves], axis=0)
        pads = [[(0, n - m) for n, m in zip(shape, leaf.shape, strict=True)] for leaf in leaves]
        return np.stack([np.pad(leaf, pad) for leaf, pad in zip(leaves, pads, strict=True)])

    return jax.tree.map(stack, *batches)


def _start(run: Run, checkpoints: Checkpoints, from_step: int | None):
    """Return the state to continue from, the data iterator at its position, and steps skipped."""
    iterator = run.train_iterator()
    step = processes.on_first(checkpoints.last_step) if from_step is None else from_step
    if step is not None:
        packs = run.config.train.packed_optimizer  # then the shapes of a state depend on its masks
        masks = checkpoints.restore_variables(step)["masks"] if packs else None
        state, meta = checkpoints.restore(abstract_state(run, masks), step)
        shardings = run.placement.shardings(state, state.params)
        rest = {"step": state.step, "rng": state.rng}
        rest = processes.placed(rest, {name: getattr(shardings, name) for name in rest})
        state = state.replace(**rest)
        iterator.set_state(meta["data"])
        run.report(f"continuing from step {int(state.step)} of {run.workdir}")
        return state, iterator, meta.get("skipped", 0)
    count = count_params(run.model)
    if count > MAX_WEIGHTS:
        raise ConfigError(f"config.model: {count} weights; expected at most {MAX_WEIGHTS}")
    run.report(
        f"{run.config.model.name}: {count:,} parameters, "
        f"{counted(len(run.dataset.splits['train']), 'training image')}, "
        f"{counted(run.total_steps, 'step')}"
    )
    state, initial = first_state(run)
    if processes.count() > 1:
        sums = {"first params": crc32(state.params), "first masks": crc32(state.prune.masks)}
        processes.check_same(sums, "expected the same software, data and kind of machine for all")
    if processes.is_first():
        save_weights(run.workdir / INITIAL_WEIGHTS, jax.device_get(initial))
    return processes.placed(state, run.placement.shardings(state, state.params)), iterator, 0


def _run_steps(
    run: Run,
    state: TrainState,
    iterator,
    checkpoints: Checkpoints,
    watch: FiniteWatch,
    advice: str,
    trace: StepTrace,
) -> None:
    """Take all remaining steps; `advice` says how to continue after a signal."""
    config, step = run.config.train, int(state.step)
    skips = config.skip_nonfinite > 0
    shardings = run.placement.shardings(state, state.params)
    compiled = functools.cache(
        lambda objective: make_train_step(
            objective,
            run.pruner,
            run.tx,
            run.mesh,
            skip_nonfinite=skips,
            packs=config.packed_optimizer,
            shardings=shardings,
            ready=processes.wait_for_all,
            put=processes.placed,
        )
    )
    masked = sum(leaf.size for leaf in jax.tree.leaves(state.prune.masks))
    logs = Logs(run, step, masked) if processes.is_first() else NoLogs()
    progress = Progress(run, logs, watch)
    saver = Saver(
        run, iterator, checkpoints, watch, logs, progress, Validator(run), LiveSummary(run, step)
    )
    try:
        for index, objective, inputs in read_ahead(_calls(run, iterator, step)):
            trace.before(state)
            state, metrics = compiled(objective)(state, *inputs)
            step += len(index)
            if trace.after(len(index), state):
                run.report(f"wrote a profile of {trace.steps} steps to {trace.directory}")
            checkpoints.check()
            watch.add(step, index, state, metrics)
            progress.write()
            if step % config.log_every == 0 or step == run.total_steps:
                progress.keep(step, metrics, state.prune.masks)
            stop = processes.received_signal()
            validates = step % run.eval_every == 0 or step == run.total_steps
            if validates or stop:
                saver(step, state, validates)
            if stop:
                raise stopping.Stopped(stop, f" at step {step}", advice)
    finally:
        iterator.close()
        logs.close()
        if line := trace.close():
            run.report(line)


def _calls(run: Run, iterator, step: int) -> Iterator[tuple[np.ndarray, Objective, tuple]]:
    """Yield for each call of the compiled step: images `[N, B]`, objective, inputs on the devices.

    A call ends where something is logged or saved, or where another objective begins.
    """
    config = run.config.train
    events = config.log_every, run.eval_every
    sharding = NamedSharding(run.mesh, PartitionSpec(None, "data"))
    while step < run.total_steps:
        ends = [run.total_steps, step + config.steps_per_call, run.next_change(step)]
        count = min(*ends, *((step // every + 1) * every for every in events)) - step
        objective = run.objective_at(step)
        batches = stack_batches([next(iterator) for _ in range(count)])
        inputs, static = objective.inputs(batches, step)
        step += count
        yield batches.index, objective, (processes.to_devices(inputs, sharding), static)


def _finish(run: Run, checkpoints: Checkpoints) -> dict[str, Any]:
    """Write the best model's pruned weights and the summary."""
    best = checkpoints.best_step()
    if best is None:
        tolerance = run.config.eval.sparsity_tolerance
        run.report(
            f"no checkpoint came within {tolerance:g} of its target sparsity; "
            f"{MODEL} is the last one"
        )
    newest = checkpoints.newest()
    step = newest if best is None else best
    variables = checkpoints.restore_variables(step)
    last = variables if best is None else checkpoints.restore_variables(newest)
    warn_unless_begun(run.pruner, last["masks"])
    masks = jax.device_get(run.pruner.binarize(variables["masks"]))
    params = jax.device_get(finalize(variables["params"], masks))
    notes = read_notes(run.workdir)
    finished = LoadedRun(run.config, run.tokenizer, run.model, params, masks, *notes)
    size = save_finished(run.workdir, finished)
    write_json(run.workdir / PARAMS, by_module(summarize(params, masks)))
    if masks:
        initial = load_weights(run.workdir / INITIAL_WEIGHTS)["params"]
        write_sparsity_report(run.workdir, params, masks, initial, step)
    summary = {
        "step": newest,
        "best_step": best,
        "validation": checkpoints.meta(step)["validation"],
        **weight_counts(params, masks),
        "bytes": size,
    }
    write_json(run.workdir / SUMMARY, summary)
    LiveSummary(run, newest).write(best, finished=True)
    chosen = "last step" if best is None else f"best step {best}"
    scores = summary["validation"] or {}
    shown = f" | CIDEr {scores['CIDEr']:.4f}" if scores.get("CIDEr") is not None else ""
    zeros = f"{summary['sparsity']:.2%} of {summary['prunable']:,} prunable weights are 0"
    shown += f" | {zeros}, {summary['nonzeros']:,} are not"
    run.report(f"wrote {run.workdir / MODEL}: {chosen}{shown} | {size / 1e6:.2f} MB")
    return summary
