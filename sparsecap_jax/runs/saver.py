"""What training does at each validation: score the state, log, save, write the run's page."""

import dataclasses
from typing import Any

import jax

from sparsecap_jax.data.pipeline import TrainIterator
from sparsecap_jax.pruning.masks import sparsity
from sparsecap_jax.pruning.step import TrainState
from sparsecap_jax.runs import processes
from sparsecap_jax.runs.checkpoints import Checkpoints, snapshot
from sparsecap_jax.runs.finished import FINISHED, PARAMS, SUMMARY
from sparsecap_jax.runs.finite import FiniteWatch
from sparsecap_jax.runs.live_summary import LiveSummary
from sparsecap_jax.runs.logs import Logs, NoLogs, of_masks
from sparsecap_jax.runs.progress import Progress
from sparsecap_jax.runs.run import Run
from sparsecap_jax.runs.validation import Validator


@dataclasses.dataclass
class Saver:
    """Validates and saves a state, with its logs."""

    run: Run
    iterator: TrainIterator
    checkpoints: Checkpoints
    watch: FiniteWatch
    logs: Logs | NoLogs
    progress: Progress
    validator: Validator
    summary: LiveSummary

    def __call__(self, step: int, state: TrainState, validates: bool) -> None:
        """Save the state of a step, `validates`: with its scores."""
        self.watch.check(step, state)
        info: dict[str, Any] = {"skipped": self.watch.skipped}
        self.progress.write()
        self.checkpoints.wait()  # else there would be three states
        kept = snapshot(state)  # before validation, so that no step waits for it
        score = None
        if validates:
            info["validation"], score = self._validate(step, state)
        self.logs.flush()
        self.checkpoints.save(kept, score=score, data=self.iterator.get_state(step), info=info)
        _remove_results(self.run, self.checkpoints)
        if validates:
            self.summary.write()
            self._report(step, state, info["validation"], score)
            self.logs.skip(step)

    def _validate(self, step: int, state: TrainState) -> tuple[dict[str, float], float | None]:
        """Return the metrics of a state, and its score, see `Validator`; log them."""
        metrics, score = self.validator(state)
        self.watch.check_validation(step, metrics)
        self.logs.write("validation", step, metrics)
        if masks := self.run.pruner.binarize(state.prune.masks):
            self.logs.write("sparsity", step, sparsity(masks).tensors)
        self.summary.add(step, self.validator.samples)
        return metrics, score

    def _report(
        self, step: int, state: TrainState, metrics: dict[str, float], score: float | None
    ) -> None:
        shown = " | ".join(f"{key} {value:.4f}" for key, value in metrics.items())
        shown += of_masks(sum(leaf.size for leaf in jax.tree.leaves(state.prune.masks)))
        shown += " | off its target sparsity" if score is None else ""
        self.run.report(f"step {step}/{self.run.total_steps} | validation: {shown}")


def _remove_results(run: Run, checkpoints: Checkpoints) -> None:
    """Remove the results of earlier steps, which would be scored in place of the newer ones."""
    results = [run.workdir / name for name in (*FINISHED, PARAMS, SUMMARY)]
    if processes.is_first() and any(path.exists() for path in results):
        checkpoints.wait()
        for path in results:
            path.unlink(missing_ok=True)
