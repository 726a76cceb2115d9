"""Steps at which masks are recomputed, and their sparsities."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from sparsecap_jax.errors import ConfigError


def removals(target: float, size: int) -> int:
    """Return the number of `size` entries that a target sparsity removes: int(target x size).

    Computed on the host in float64, since float32 would round the product.
    """
    return int(target * size)


@dataclasses.dataclass(frozen=True)
class Polynomial:
    """Sparsity that rises from `initial` to `final` along a cubic.

        s(e) = final + (initial - final) * (1 - e / events)^3,   e = 0..events

    Event e happens at step `start + e * frequency`; step counts finished optimizer steps.

    Attributes:
        start: step of event 0, whose sparsity is `initial`.
        frequency: steps between events.
        events: number of rises; event `events` has sparsity `final`.
        initial: sparsity at the start; equal to `final`, every event has the whole target.
        final: sparsity at the end.

    References:
        Zhu and Gupta, "To prune, or not to prune" (2017), arXiv 1710.01878, equation 1.
    """

    start: int
    frequency: int
    events: int
    initial: float
    final: float

    @property
    def end(self) -> int:
        """Step of the last event."""
        return self.start + self.events * self.frequency

    def target(self, event: int, final: float | None = None) -> float:
        """Sparsity of an event, 0 to `events`, float64; `final` for a tensor with its own."""
        final = self.final if final is None else final
        left = 1.0 - event / self.events if self.events else 0.0
        return final + (min(self.initial, final) - final) * left**3

    def locate(self, step: Int[Array, ""]) -> tuple[Bool[Array, ""], Int[Array, ""]]:
        """Return whether `step` is an event, and the number of the last one up to it, or 0."""
        since = step - jnp.int32(self.start)
        due = (since >= 0) & (step <= self.end) & (since % self.frequency == 0)
        return due, jnp.clip(since // self.frequency, 0, self.events)

    def table(self, sizes: Sequence[int], finals: Sequence[float]) -> np.ndarray:
        """Return uint32 `[events + 1, G]`: number of entries of each group that an event removes.

        `sizes` are the numbers of entries of the groups, `finals` their final sparsities.
        """
        rows = [
            [removals(self.target(event, f), n) for f, n in zip(finals, sizes, strict=True)]
            for event in range(self.events + 1)
        ]
        return np.array(rows, np.uint32).reshape(self.events + 1, len(sizes))


def gradual_schedule(
    final: float,
    total_steps: int,
    steps_per_epoch: int | None = None,
    *,
    initial: float = 0.0,
    start: int | None = None,
    frequency: int | None = None,
    events: int | None = None,
) -> Polynomial:
    """Return the cubic schedule, with the reference's defaults where a value is None.

    Masks first tighten after the first epoch and last at half of training, every 1000 steps; where
    that would make fewer than 20 events, 20 events are spread over the same span (fewer in a span
    of fewer steps).

    The other arguments are those of `Polynomial`, and lengths in steps. Without `steps_per_epoch`,
    or where an epoch takes half of training, the start is a quarter of training.

    Raises:
        ConfigError: the events do not fit into training.
    """
    half = total_steps // 2
    if start is None:
        start = steps_per_epoch if steps_per_epoch and steps_per_epoch < half else total_steps // 4
    span = half - start
    if frequency is None:
        if events is None:
            frequency = 1000 if span >= 20 * 1000 else max(1, span // 20)
        else:
            frequency = max(1, span // max(1, events))
    if events is None:
        events = span // frequency
    schedule = Polynomial(start, frequency, events, initial, final)
    if start < 0 or frequency < 1 or events < 1 or schedule.end > total_steps:
        raise ConfigError(
            f"pruner: {events} events every {frequency} steps from step {start} do not fit into "
            f"{total_steps} steps; set start_step, frequency and events"
        )
    return schedule
