"""Structures: single weights, N of M neighbours, or blocks stay or go together.

    unstructured   every weight by itself
    N:M            of M neighbours along an axis, the N with the highest scores stay
    HxW            blocks of the last two dimensions, ranked by their mean score

Sparse tensor cores compute N:M sparsity fast; blocks suit every accelerator.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning.paths import Path, show
from sparsecap_jax.pruning.ranking import prune_smallest
from sparsecap_jax.pruning.targets import Shape

Tensors = Sequence[Float[Array, "..."]]


@dataclasses.dataclass(frozen=True)
class Unstructured:
    """Every weight is ranked by itself."""

    def entries(self, path: Path, shape: Shape) -> int:
        """Return the number of entries of a tensor that are ranked."""
        return math.prod(shape)

    def prune(self, scores: Tensors, remove: UInt32[Array, " G"], groups: tuple[int, ...]) -> list:
        """Return masks with a 0 at the `remove` smallest scores of each group."""
        return prune_smallest(list(scores), remove, groups)


@dataclasses.dataclass(frozen=True)
class Block(Unstructured):
    """Blocks of `height` x `width` in the last two dimensions, smaller at the edges."""

    height: int
    width: int

    def entries(self, path: Path, shape: Shape) -> int:
        """Return the number of blocks."""
        *leading, rows, columns = shape
        return math.prod(leading) * -(-rows // self.height) * -(-columns // self.width)

    def prune(self, scores: Tensors, remove: UInt32[Array, " G"], groups: tuple[int, ...]) -> list:
        """Rank blocks by their mean score and spread the result over their weights."""
        small = prune_smallest([self._pool(score) for score in scores], remove, groups)
        return [
            jnp.repeat(jnp.repeat(mask, self.height, axis=-2), self.width, axis=-1)[
                ..., : score.shape[-2], : score.shape[-1]
            ]
            for mask, score in zip(small, scores, strict=True)
        ]

    def _pool(self, score: Array) -> Array:
        def total(x):
            *leading, rows, columns = x.shape
            tall, wide = -(-rows // self.height), -(-columns // self.width)
            pads = [(0, tall * self.height - rows), (0, wide * self.width - columns)]
            x = jnp.pad(x, [(0, 0)] * len(leading) + pads)
            x = x.reshape(*leading, tall, self.height, wide, self.width)
            # Column by column, in a fixed order: sharding cannot change the rounding.
            x = sum(x[..., i] for i in range(self.width))
            return sum(x[..., i, :] for i in range(self.height))

        return total(score) / total(jnp.ones_like(score))


@dataclasses.dataclass(frozen=True)
class NofM(Unstructured):
    """Groups of `m` neighbours along `axis`, of which `n` stay."""

    n: int
    m: int
    axis: int

    def entries(self, path: Path, shape: Shape) -> int:
        """Return `m`: `remove` counts weights of one group of neighbours."""
        if not -len(shape) <= self.axis < len(shape) or shape[self.axis] % self.m:
            raise ConfigError(
                f"pruner.sparsity_type is '{self.n}:{self.m}', but axis {self.axis} of "
                f"{show(path)!r} with shape {shape} is no multiple of {self.m}; exclude it"
            )
        return self.m

    def prune(self, scores: Tensors, remove: UInt32[Array, " G"], groups: tuple[int, ...]) -> list:
        """Remove the lowest of each `m` neighbours; of equal scores the earlier goes first."""
        masks = []
        for score, group in zip(scores, groups, strict=True):
            lanes = jnp.moveaxis(score, self.axis, -1)
            rows = lanes.reshape(*lanes.shape[:-1], -1, self.m)
            ranks = jnp.argsort(jnp.argsort(rows, axis=-1, stable=True), axis=-1, stable=True)
            kept = (ranks.astype(jnp.uint32) >= remove[group]).astype(jnp.float32)
            masks.append(jnp.moveaxis(kept.reshape(lanes.shape), -1, self.axis))
        return masks


def parse_structure(text: str, axis: int) -> Unstructured:
    """Return the structure that a config names; a ConfigError for unknown or impossible ones.

    Besides the names above, those of jaxpruner are known: `nm_N,M` and `block_H,W`.
    """
    if text == "unstructured":
        return Unstructured()
    match = re.fullmatch(r"(?:(\d+):|nm_(\d+),)(\d+)|(?:(\d+)x|block_(\d+),)(\d+)", text)
    if match:
        of_m, blocks = match.group(3), match.group(6)
        first, second = (int(x) for x in match.groups() if x is not None)
        if of_m and 0 < first < second:
            return NofM(first, second, axis)
        if blocks and first > 0 and second > 0:
            return Block(first, second)
    raise ConfigError(
        f"pruner.sparsity_type is {text!r}; expected 'unstructured', N:M with 0 < N < M, or HxW"
    )
