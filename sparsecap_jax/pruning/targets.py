"""Distribution of the target over tensors: groups that are ranked together, and their sparsities.

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

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning.paths import Path, matching
from sparsecap_jax.pruning.schedules import removals

Distribution = Literal["global", "uniform", "erk"]
Shape = tuple[int, ...]


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
        return [removals(s, n) for s, n in zip(self.sparsities, self.sizes, strict=True)]


def parse_overrides(overrides: tuple[str, ...], paths: list[Path]) -> dict[Path, float]:
    """Return the sparsity of each path that an override names; of several overrides the last holds.

    Raises:
        ConfigError: no `=`, a sparsity out of range, or a pattern that matches nothing.
    """
    sparsities = {}
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
        matches = matching((pattern,), paths, "pruner.overrides")
        sparsities |= dict.fromkeys(sorted(matches), sparsity)
    return sparsities


def erk(shapes: Mapping[Path, Shape], sparsity: float) -> dict[Path, float]:
    """Return sparsities by Erdos-Renyi-Kernel that keep as many weights as a uniform target would.

    Tensors whose density would exceed 1 stay dense, and the others share the rest of the weights.
    """
    size = {path: math.prod(shape) for path, shape in shapes.items()}
    raw = {path: sum(shape) / size[path] for path, shape in shapes.items()}
    budget = sum(n - removals(sparsity, n) for n in size.values())
    thin, scale = set(shapes), 0.0
    while thin:
        left = budget - sum(n for path, n in size.items() if path not in thin)
        scale = left / sum(raw[path] * size[path] for path in thin)
        crowded = {path for path in thin if scale * raw[path] > 1.0}
        if not crowded:
            break
        thin -= crowded
    return {path: 1.0 - scale * raw[path] if path in thin else 0.0 for path in shapes}


def make_targets(
    shapes: Mapping[Path, Shape],
    sparsity: float,
    distribution: Distribution,
    overrides: tuple[str, ...] = (),
    entries: Callable[[Path, Shape], int] = lambda path, shape: math.prod(shape),
) -> Targets:
    """Group tensors and give each group its sparsity.

    Args:
        shapes: shapes of the active tensors by path, in order.
        sparsity: the target.
        distribution: see above.
        overrides: texts `PATTERN=SPARSITY`.
        entries: returns the number of entries of a tensor that are ranked.

    Raises:
        ConfigError: see `parse_overrides`.
    """
    alone = parse_overrides(overrides, list(shapes))
    rest = {path: shape for path, shape in shapes.items() if path not in alone}
    if distribution == "erk":
        alone |= erk(rest, sparsity)
    elif distribution == "uniform":
        alone |= dict.fromkeys(rest, sparsity)
    groups, sizes, sparsities = [], [], []
    shared = None
    for path, shape in shapes.items():
        count = entries(path, shape)
        if path in alone or shared is None:
            groups.append(len(sizes))
            sizes.append(count)
            sparsities.append(alone.get(path, sparsity))
            shared = shared if path in alone else groups[-1]
        else:
            groups.append(shared)
            sizes[shared] += count
    return Targets(tuple(groups), tuple(sizes), tuple(sparsities))
