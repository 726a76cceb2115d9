"""Watches over a run: nothing that is not finite is trained on, or saved."""

from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import Int

from sparsecap_jax.errors import SparsecapError
from sparsecap_jax.pruning.step import TrainState
from sparsecap_jax.runs import processes
from sparsecap_jax.runs.checkpoints import Checkpoints
from sparsecap_jax.runs.run import Run
from sparsecap_jax.training.steps import fault_names, first_fault, suspects

_ADVICE = (
    "try a smaller config.optimizer.learning_rate or clip_at, or leave up to N such batches out "
    "by --skip_nonfinite=N"
)


class NonFiniteError(SparsecapError):
    """A loss, gradient, weight, mask or optimizer state became NaN or infinite."""


class FiniteWatch:
    """Stops a run at its first step that is not finite, or skips and counts such steps.

    The reports of a call are read when the next call has been sent off, so that the devices do not
    wait for the host.

    Args:
        run: the run; `config.train.skip_nonfinite` steps may be skipped.
        checkpoints: its checkpoints, which messages refer to.
        skipped: number of steps that were skipped before.
    """

    def __init__(self, run: Run, checkpoints: Checkpoints, skipped: int):
        self.skipped = skipped
        self._run, self._checkpoints = run, checkpoints
        self._first_fault = jax.jit(lambda state: first_fault(suspects(state).values()))
        self._names: list[str] = []
        self._call: tuple[int, Int[np.ndarray, "N B"], jax.Array, jax.Array] | None = None

    def add(
        self, step: int, index: Int[np.ndarray, "N B"], state: TrainState, metrics: dict
    ) -> None:
        """Take what a call of the compiled step returned, and look at the call before.

        Args:
            step: number of steps taken.
            index: images of the batches of the call.
            state: the state after it.
            metrics: its metrics; `fault` is taken out.
        """
        self.look()
        faults = metrics.pop("fault")
        self._call = step, index, faults, metrics["loss"]
        self._names = self._names or fault_names(state, self._run.pruner)

    def look(self) -> None:
        """Look at the last call that was added.

        Raises:
            NonFiniteError: one of its steps is not finite, and may not be skipped.
        """
        if not self._call:
            return
        (step, index, faults, loss), self._call = self._call, None
        limit, faults = self._run.config.train.skip_nonfinite, jax.device_get(faults)
        for row in np.flatnonzero(faults):
            name, place = self._names[faults[row] - 1], step - len(faults) + 1 + int(row)
            value = float(loss) if faults[row] == 1 else 0.0
            what = f"{name} is {'not finite' if np.isfinite(value) else value}"
            records = self._run.dataset.splits["train"]
            numbers = [i for part in processes.gather(index[row].tolist()) for i in part]
            images = ", ".join(str(records[i].image_id) for i in numbers if i >= 0)
            what = f"step {place}: {what} on images {images}"
            if self.skipped >= limit:
                already = f"; {limit} steps were skipped before" if limit else ""
                raise NonFiniteError(f"{what}{already}{self._last()}; {_ADVICE}")
            self.skipped += 1
            self._run.report(f"{what}; skipped ({self.skipped} of {limit})")

    def check(self, step: int, state: TrainState) -> None:
        """Check a state that is to be saved.

        Raises:
            NonFiniteError: a leaf is not finite, or as in `look`.
        """
        self.look()
        fault = int(self._first_fault(state))
        if fault:
            name = list(suspects(state))[fault - 1]
            raise NonFiniteError(
                f"step {step}: {name} is not finite, though the loss was{self._last()}; {_ADVICE}"
            )

    def check_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Check the loss of a validation; a NonFiniteError says that it is not finite."""
        if not np.isfinite(metrics["loss"]):
            raise NonFiniteError(
                f"step {step}: the validation loss is {metrics['loss']}{self._last()}; {_ADVICE}"
            )

    def _last(self) -> str:
        last = self._checkpoints.last_step()
        if last is None:
            return "; nothing is saved"
        return f"; nothing of it is saved, the last checkpoint is that of step {last}"
