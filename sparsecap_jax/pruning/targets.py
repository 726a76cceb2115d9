"""Number of weights to remove: groups that are ranked together, their sparsities, and schedules.

    global   all tensors together, at the target
    uniform  each tensor by itself, at the target
    erk      each tensor by itself; density ~ (d_1 + ... + d_n) / (d_1 * ... * d_n) of its shape

A tensor with an override is always ranked by itself, and the target holds for the others.

References:
    Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse
    connectivity inspired by network science" (2018), arXiv 1707.04780 (Erdos-Renyi).
    Evci et al., "Rigging the lottery" (2020), arXiv 1911.11134 (Erdos-Renyi-Kernel).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning.paths import Path, matching

Distribution = Literal["global", "uniform", "erk"]
Shape = tuple[int, ...]


def removals(target: float, size: int) -> int:
    """Return the number of `size` entries that a target sparsity removes: int(target x size).

    Computed on the host in float64, since float32 would round the product.
    """
    return int(target * size)


@dataclasses.dataclass(frozen=True)
class Targets:
    """Groups of tensors that are ranked together.

    Attributes:
        groups: for each tensor, its group 0..G-1.
        sizes: for each group, the number of entries that are ranked (weights, or blocks of them).
        sparsities: for each group, the fraction of them to remove.
    """

    groups: tuple[int, ...]
    sizes: tuple[int, ...]
    sparsities: tuple[float, ...]

    def removals(self) -> list[int]:
        """Return the number of entries to remove of each group."""
        return list(map(removals, self.sparsities, self.sizes))


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

    def table(self, targets: Targets) -> np.ndarray:
        """Return uint32 `[events + 1, G]`: entries of each group that are gone after an event."""
        groups = list(zip(targets.sparsities, targets.sizes, strict=True))
        events = range(self.events + 1)
        table = [[removals(self.target(event, s), n) for s, n in groups] for event in events]
        return np.array(table, np.uint32)


def parse_overrides(overrides: tuple[str, ...], paths: list[Path]) -> dict[Path, float]:
    """Return the sparsity of each path that an override names; of several the last holds.

    A ConfigError, unless they are `PATTERN=SPARSITY` in range, and each pattern matches something.
    """
    sparsities: dict[Path, float] = {}
    for text in overrides:
        pattern, equals, value = text.rpartition("=")
        try:
            sparsity = float(value)
        except ValueError:
            sparsity = math.nan
        if not equals or not 0.0 <= sparsity < 1.0:
            raise ConfigError(
                f"pruner.overrides: {text!r}; expected PATTERN=SPARSITY, at least 0 and below 1"
            )
        sparsities |= dict.fromkeys(matching((pattern,), paths, "pruner.overrides"), sparsity)
    return sparsities


def erk(shapes: Mapping[Path, Shape], sparsity: float) -> dict[Path, float]:
    """Return sparsities by Erdos-Renyi-Kernel that keep as many weights as a uniform target would.

    Tensors whose density would exceed 1 stay dense, and the others share the rest of the weights.
    """
    size = {path: math.prod(shape) for path, shape in shapes.items()}
    raw = {path: sum(shape) / size[path] for path, shape in shapes.items()}
    budget = sum(n - removals(sparsity, n) for n in size.values())
    thin, scale = list(shapes), 0.0
    while thin:
        left = budget - sum(n for path, n in size.items() if path not in thin)
        scale = left / sum(raw[path] * size[path] for path in thin)
        crowded = [path for path in thin if scale * raw[path] > 1.0]
        if not crowded:
            break
        thin = [path for path in thin if path not in crowded]
    return {path: 1.0 - scale * raw[path] if path in thin else 0.0 for path in shapes}


def make_targets(
    shapes: Mapping[Path, Shape],
    sparsity: float,
    distribution: Distribution,
    overrides: tuple[str, ...] = (),
    entries: Callable[[Path, Shape], int] = lambda path, shape: math.prod(shape),
) -> Targets:
    """Group the active tensors and give each group its sparsity; see above for `distribution`.

    `overrides` are those of `parse_overrides`; `entries` returns the number of entries of a tensor
    that are ranked.
    """
    alone = parse_overrides(overrides, list(shapes))
    rest = {path: shape for path, shape in shapes.items() if path not in alone}
    if distribution != "global":
        alone |= erk(rest, sparsity) if distribution == "erk" else dict.fromkeys(rest, sparsity)
    keys = [path if path in alone else None for path in shapes]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    sizes = [0] * len(numbers)
    for key, (path, shape) in zip(keys, shapes.items(), strict=True):
        sizes[numbers[key]] += entries(path, shape)
    groups = (numbers[key] for key in keys)
    sparsities = (sparsity if key is None else alone[key] for key in numbers)
    return Targets(tuple(groups), tuple(sizes), tuple(sparsities))
