"""Structures: which weights stay or go together.

    unstructured   every weight by itself
    N:M            of M neighbours along an axis, the N with the highest scores stay
    iterative_N:M  every weight by itself, but those that N:M would keep last
    HxW, HxW_max   blocks of the last two dimensions, ranked by their mean or their highest score
    channels       all weights of one index of an axis, ranked by their mean score

Nothing is sorted but the neighbours of N:M. Sparse tensor cores compute N:M sparsity fast; blocks
suit every accelerator.
"""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning.paths import Path, show
from sparsecap_jax.pruning.ranking import Tensors, fixed_order_sum, prune_smallest
from sparsecap_jax.pruning.targets import Shape


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
    """Blocks of `height` x `width` in the last two dimensions, smaller at the edges.

    They are ranked by their mean score, or with `highest` by the highest.

    References:
        Narang, Undersander and Diamos, "Block-sparse recurrent neural networks" (2017), arXiv
        1711.02782 (the highest).
        Lee et al., "JaxPruner: a concise library for sparsity research" (2023), arXiv 2304.14082
        (the mean).

    Cost: a pass over the scores, and `prune_smallest` of a score for each block. Memory: a padded
    copy of the scores.
    """

    height: int
    width: int
    highest: bool = False

    def entries(self, path: Path, shape: Shape) -> int:
        """Return the number of blocks."""
        *leading, rows, columns = shape
        return math.prod(leading) * -(-rows // self.height) * -(-columns // self.width)

    def prune(self, scores: Tensors, remove: UInt32[Array, " G"], groups: tuple[int, ...]) -> list:
        """Rank blocks and spread the result over their weights."""
        small = prune_smallest([self._pool(score) for score in scores], remove, groups)
        return [
            jnp.repeat(jnp.repeat(mask, self.height, axis=-2), self.width, axis=-1)[
                ..., : score.shape[-2], : score.shape[-1]
            ]
            for mask, score in zip(small, scores, strict=True)
        ]

    def _pool(self, score: Array) -> Array:
        def blocks(x, edge):
            *leading, rows, columns = x.shape
            tall, wide = -(-rows // self.height), -(-columns // self.width)
            pads = [(0, tall * self.height - rows), (0, wide * self.width - columns)]
            x = jnp.pad(x, [(0, 0)] * len(leading) + pads, constant_values=edge)
            return x.reshape(*leading, tall, self.height, wide, self.width)

        if self.highest:
            return jnp.max(blocks(score, -jnp.inf), axis=(-3, -1))

        def total(x):
            x = blocks(x, 0)
            # Column by column, in a fixed order: sharding cannot change the rounding.
            x = sum(x[..., i] for i in range(self.width))
            return sum(x[..., i, :] for i in range(self.height))

        return total(score) / total(jnp.ones_like(score))


@dataclasses.dataclass(frozen=True)
class NofM(Unstructured):
    """Groups of `m` neighbours along `axis`, of which `n` stay.

    References:
        Mishra et al., "Accelerating sparse deep neural networks" (2021), arXiv 2104.08378 (2:4).

    Cost: O(log M) a weight, for sorts of M neighbours. Memory: their ranks, int32, twice.
    """

    n: int
    m: int
    axis: int

    @property
    def removed(self) -> float:
        """Fraction that goes, 1 - N / M."""
        return 1.0 - self.n / self.m

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


@dataclasses.dataclass(frozen=True)
class IterativeNofM(NofM):
    """N:M reached by way of masks that any sparsity below it may have.

    The weights that N:M would keep now rank above all others, which go one by one: at the sparsity
    1 - N / M, the highest that it can have, the mask is that of N:M.

    References:
        Lee et al., "JaxPruner: a concise library for sparsity research" (2023), arXiv 2304.14082
        (its extension `iterative_nm`).

    Cost: those of `NofM` and `prune_smallest`. Memory: a copy of the scores.
    """

    def entries(self, path: Path, shape: Shape) -> int:
        """Return the number of weights; errors as in `NofM`."""
        super().entries(path, shape)
        return math.prod(shape)

    def prune(self, scores: Tensors, remove: UInt32[Array, " G"], groups: tuple[int, ...]) -> list:
        """Remove the lowest scores of each group, those that N:M keeps last."""
        last = super().prune(scores, jnp.full_like(remove, self.m - self.n), groups)
        pairs = zip(scores, last, strict=True)
        safe = [jnp.where(mask != 0, jnp.float32(jnp.inf), score) for score, mask in pairs]
        return prune_smallest(safe, remove, groups)


@dataclasses.dataclass(frozen=True)
class Channels(Unstructured):
    """All weights of one index of `axis`, such as an output of a layer, ranked by their mean.

    References:
        Li et al., "Pruning filters for efficient ConvNets" (2017), arXiv 1608.08710 (of magnitudes,
        within each layer).

    Cost: a pass over the scores, and `prune_smallest` of a score for each channel. Memory: a
    padded copy of the scores.
    """

    axis: int

    def entries(self, path: Path, shape: Shape) -> int:
        """Return the number of channels."""
        if not -len(shape) <= self.axis < len(shape):
            raise ConfigError(
                f"pruner.sparsity_axis is {self.axis}, but {show(path)!r} has shape {shape}"
            )
        return shape[self.axis]

    def prune(self, scores: Tensors, remove: UInt32[Array, " G"], groups: tuple[int, ...]) -> list:
        """Rank channels and spread the result over their weights."""
        lanes = [jnp.moveaxis(score, self.axis, 0) for score in scores]
        flat = [lane.reshape(lane.shape[0], -1) for lane in lanes]
        means = [jax.vmap(fixed_order_sum)(rows) / rows.shape[1] for rows in flat]
        small = prune_smallest(means, remove, groups)
        return [
            jnp.moveaxis(jnp.broadcast_to(mask, lane.shape[::-1]).T, 0, self.axis)
            for mask, lane in zip(small, lanes, strict=True)
        ]


def parse_structure(text: str, axis: int) -> Unstructured:
    """Return the structure that a config names; a ConfigError for unknown or impossible ones.

    Besides the names above, those of jaxpruner are known: `nm_N,M` and `block_H,W`.
    """
    if text == "unstructured":
        return Unstructured()
    if text == "channels":
        return Channels(axis)
    neighbours = re.fullmatch(r"(iterative_)?(?:(?=\d+:)|nm_(?=\d+,))(\d+)[:,](\d+)", text)
    blocks = re.fullmatch(r"(?:(?=\d+x)|block_(?=\d+,))(\d+)[x,](\d+)(_max)?", text)
    if neighbours and 0 < (n := int(neighbours[2])) < (m := int(neighbours[3])):
        return (IterativeNofM if neighbours[1] else NofM)(n, m, axis)
    if blocks and (height := int(blocks[1])) > 0 and (width := int(blocks[2])) > 0:
        return Block(height, width, bool(blocks[3]))
    raise ConfigError(
        f"pruner.sparsity_type is {text!r}; expected 'unstructured', 'channels', N:M or "
        "iterative_N:M with 0 < N < M, HxW or HxW_max"
    )
