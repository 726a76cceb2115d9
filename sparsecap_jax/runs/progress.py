"""Progress of training: metrics are fetched when the next call is under way."""

from typing import Any

import jax

from sparsecap_jax.pruning.step import Metrics
from sparsecap_jax.runs.finite import FiniteWatch
from sparsecap_jax.runs.logs import Logs
from sparsecap_jax.runs.run import Run
from sparsecap_jax.types import PyTree


class Progress:
    """Keeps the metrics of a call until the next one is sent off, so that devices do not wait.

    Args:
        run: the run.
        logs: its logs.
        watch: counts skipped steps.
    """

    def __init__(self, run: Run, logs: Logs, watch: FiniteWatch):
        self._logs, self._watch = logs, watch
        self._counts_skipped = run.config.train.skip_nonfinite > 0
        self._readings = jax.jit(run.pruner.readings)
        self._kept: tuple[int, dict[str, Any]] | None = None

    def keep(self, step: int, metrics: Metrics, masks: PyTree) -> None:
        """Take the metrics of a call that ended at `step`, and the masks after it."""
        metrics = {**metrics, **self._readings(masks)}
        for value in metrics.values():
            value.copy_to_host_async()
        self._kept = step, metrics

    def write(self) -> None:
        """Log what is kept, if anything; waits for the call that it is of."""
        if self._kept:
            (step, metrics), self._kept = self._kept, None
            counts = {"skipped": self._watch.skipped} if self._counts_skipped else {}
            self._logs.progress(step, {**jax.tree.map(float, jax.device_get(metrics)), **counts})
