"""A trace of a few training steps, for `sparsecap train --profile`."""

import dataclasses
import pathlib
from typing import Any

import jax

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.text import counted


@dataclasses.dataclass
class StepTrace:
    """Trace of the steps that follow the first ones of a run, written as they end.

    The folder can be opened with XProf or TensorBoard's profile plugin; the file
    `*.trace.json.gz` in it, with https://ui.perfetto.dev. Calls of several steps
    (`config.train.steps_per_call`) are traced whole.

    Attributes:
        directory: the folder; "" for no trace.
        start: steps of this process before the trace begins: the first ones compile.
        steps: steps to trace, at least.

    Raises:
        ConfigError: the folder cannot be made.
    """

    directory: str | pathlib.Path = ""
    start: int = 10
    steps: int = 5

    def __post_init__(self):
        self._done, self._running, self._over = 0, False, not self.directory
        if self.directory:
            try:
                pathlib.Path(self.directory).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"profile: {self.directory}: {error.strerror}") from error

    def before(self, state: Any) -> None:
        """Begin the trace where it is time, once `state`, the result of the last step, is there."""
        if not self._over and not self._running and self._done >= self.start:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self.directory))
            self._running = True

    def after(self, steps: int, state: Any) -> bool:
        """Count `steps` more; return whether the trace ended with them, complete."""
        self._done += steps
        ends = self._running and self._done >= self.start + self.steps
        if ends:
            jax.block_until_ready(state)
            self.close()
        return ends

    def close(self) -> str:
        """Write what is traced so far; return a line where the run ended before the trace did."""
        if self._over:
            return ""
        taken = f"this command took {counted(self._done, 'step')}"
        if not self._running:
            return f"no profile: {taken}, the trace begins after {self.start}"
        jax.profiler.stop_trace()
        self._running, self._over = False, True
        return f"the profile in {self.directory} ends early: {taken}"
