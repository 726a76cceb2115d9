"""Supermask pruning: one trained logit per weight, pushed to the target by a sparsity loss.

Binary masks come from logits, by Bernoulli draws or rounding, with straight-through gradients:

    sample   m = 1 with probability sigmoid(z)        round   m = 1 if z > 0 else 0
    dm/dz := sigmoid'(z), or 1 where the sigmoid is bypassed (`bypass`)

The mask is a step function of its logit; its gradient is replaced by that of the probability.
Logits are float32 of any shape, masks float32 {0, 1} of the same shape.

References:
    Tan, Tan, Tan and Chan, "End-to-end supermask pruning: learning to prune image captioning
    models", Pattern Recognition 122 (2022), arXiv 2110.03298.
    Bengio, Leonard and Courville, "Estimating or propagating gradients through stochastic neurons
    for conditional computation" (2013), arXiv 1308.3432.
    Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011): Threefry-2x32-20.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, UInt16, UInt32

from sparsecap_jax.pruning.base import Pruner, Scalar
from sparsecap_jax.pruning.masks import count_kept, overall_sparsity
from sparsecap_jax.pruning.paths import replaced
from sparsecap_jax.settings import Range
from sparsecap_jax.types import PyTree

Logits = Float[Array, "..."]
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry(
    key: UInt32[Array, "2"], low: UInt32[Array, " N"], high: UInt32[Array, " N"]
) -> tuple[UInt32[Array, " N"], UInt32[Array, " N"]]:
    """Threefry-2x32 with 20 rounds, bit for bit JAX's own, as one fused elementwise kernel.

    JAX runs the rounds as a loop over whole arrays on CPU and keeps one word of two; for 53 M
    masks that takes 0.6 s a step against 0.05 s here.

    `low` and `high` are the words of the counters; the results are two words of random bits.
    """
    keys = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA))
    x, y = low + keys[0], high + keys[1]
    for block in range(5):
        for turn in _ROTATIONS[block % 2]:
            x = x + y
            y = ((y << jnp.uint32(turn)) | (y >> jnp.uint32(32 - turn))) ^ x
        x = x + keys[(block + 1) % 3]
        y = y + keys[(block + 2) % 3] + jnp.uint32(block + 1)
    return x, y


def random_bits(rng: Array, sizes: Sequence[int]) -> list[UInt16[Array, "..."]]:
    """Draw arrays `[size]` of independent uniform 16-bit integers; the same on every device.

    With Q a quarter of all sizes together, rounded up, the hash of counter n gives four of them:
    the halves of its first word are numbers n and n + Q, those of its second n + 2Q and n + 3Q.
    """
    key = jax.random.bits(rng, (2,), jnp.uint32)
    *starts, size = itertools.accumulate(sizes, initial=0)
    quarter = -(-size // 4)
    counters = lax.iota(jnp.uint32, quarter)
    words = threefry(key, counters, jnp.zeros_like(counters))
    # Joined behind a barrier, they are hashed once; XLA would hash again for every consumer.
    joined = lax.optimization_barrier(jnp.concatenate(words))
    places = zip(starts, sizes, strict=True)
    return [_halves(joined, quarter, start, start + length) for start, length in places]


def _halves(words: UInt32[Array, " W"], quarter: int, start: int, stop: int) -> Array:
    """Return numbers `start` to `stop` of `random_bits`."""
    found = []
    for part in range(4):
        word, half = divmod(part, 2)
        low, high = (min(max(place - part * quarter, 0), quarter) for place in (start, stop))
        taken = words[word * quarter + low : word * quarter + high]
        found.append((taken >> jnp.uint32(16 * half)).astype(jnp.uint16))
    found = [bits for bits in found if bits.size] or found[:1]
    return lax.optimization_barrier(jnp.concatenate(found))


def _slope(logits: Array, bypass: bool) -> Array:
    """Return the stand-in derivative of a mask with respect to its logit."""
    if bypass:
        return jnp.ones_like(logits)
    probability = jax.nn.sigmoid(logits)
    return probability * (1.0 - probability)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def bernoulli(logits: Logits, bits: UInt16[Array, "..."], bypass: bool) -> Float[Array, "..."]:
    """Draw masks: 1 with probability sigmoid(logit), rounded to a multiple of 2^-16.

    `bits` are uint16 of the logits' shape, from `random_bits`.
    """
    bound = jnp.round(jax.nn.sigmoid(logits) * jnp.float32(65536.0)).astype(jnp.uint32)
    return (bits.astype(jnp.uint32) < bound).astype(jnp.float32)


@bernoulli.defjvp
def _bernoulli_jvp(bypass, primals, tangents):
    logits, bits = primals
    return bernoulli(logits, bits, bypass), tangents[0] * _slope(logits, bypass)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def rounded(logits: Logits, bypass: bool) -> Float[Array, "..."]:
    """Round sigmoid(logit) to masks: 1 where the logit is positive, 0 at 0."""
    return (logits > 0).astype(jnp.float32)


@rounded.defjvp
def _rounded_jvp(bypass, primals, tangents):
    (logits,) = primals
    return rounded(logits, bypass), tangents[0] * _slope(logits, bypass)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def kept_fraction(logits: Sequence[Logits], bypass: bool) -> Float[Array, ""]:
    """Return the fraction of masks that round to 1; its gradient is that of their mean.

    It is counted in integers, since float32 sums stop at 2^24.
    """
    # sign + |sign| is 2 where z > 0 and else 0. A comparison inside a sum takes a CPU nine times as
    # long, and a constant beside it is written out as an array of all entries.
    count = count_kept((jnp.sign(z) + jnp.abs(jnp.sign(z)) for z in logits), ones=2)
    return count.astype(jnp.float32) / jnp.float32(sum(z.size for z in logits))


@kept_fraction.defjvp
def _kept_fraction_jvp(bypass, primals, tangents):
    (logits,), (changes,) = primals, tangents
    size = jnp.float32(sum(z.size for z in logits))
    moved = sum(jnp.sum(dz * _slope(z, bypass)) for z, dz in zip(logits, changes, strict=True))
    return kept_fraction(logits, bypass), moved / size


def sample_all(logits: Sequence[Logits], rng: Array, bypass: bool) -> list[Float[Array, "..."]]:
    """Draw the masks of many tensors from one flat call of the generator."""
    bits = random_bits(rng, [z.size for z in logits])
    return [bernoulli(z, b.reshape(z.shape), bypass) for z, b in zip(logits, bits, strict=True)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Supermask(Pruner):
    """Masks drawn from trained logits, straight-through, with an annealed sparsity loss.

        loss(t) = weight * |target - s| * (1 - (1 + cos(pi * min(1, t / T))) / 2)

    s is the sparsity of the rounded active masks. Leaves with a sparsity of their own (`overrides`)
    have a gap of their own; gaps are averaged, each weighted by its number of masks. Frozen masks
    are rounded, never drawn. The logits want an Adam group of their own with a large step
    (learning rate 100, epsilon 1e-2).

    Attributes:
        init_value: logit that every mask starts with.
        sparsity_weight: weight of the sparsity loss; None: max(5, weight_scale / (1 - sparsity)).
        weight_scale: 0.5 suits recurrent captioners, 1.5 transformers.
        bypass_sigmoid_grad: let the straight-through gradient bypass the sigmoid.
    """

    init_value: float = 5.0
    sparsity_weight: Annotated[float | None, Range(0)] = None
    weight_scale: Annotated[float, Range(0)] = 0.5
    bypass_sigmoid_grad: bool = False

    trains_masks: ClassVar[bool] = True

    @property
    def loss_weight(self) -> float:
        """Weight of the sparsity loss: `sparsity_weight` or its default."""
        if self.sparsity_weight is not None:
            return self.sparsity_weight
        return max(5.0, self.weight_scale / (1.0 - self.sparsity))

    def _binary(self, masks: PyTree, drawn: Any) -> PyTree:
        """Return `drawn(logits)` for active masks; frozen ones rounded, without a gradient."""
        active, frozen = self.split(masks)
        logits = [jnp.asarray(value, jnp.float32) for value in active.values()]
        binary = dict(zip(active, drawn(logits), strict=True))
        for path, value in frozen.items():
            binary[path] = lax.stop_gradient((value > 0).astype(jnp.float32))
        return replaced(masks, binary)

    def sample(self, masks: PyTree, rng: Array | None = None) -> PyTree:
        """Draw Bernoulli(sigmoid(logit)) masks for a whole step, straight-through."""
        assert rng is not None
        return self._binary(masks, lambda zs: sample_all(zs, rng, self.bypass_sigmoid_grad))

    def binarize(self, masks: PyTree) -> PyTree:
        """Round sigmoid(logit), logit 0 to 0, straight-through."""
        return self._binary(masks, lambda zs: [rounded(z, self.bypass_sigmoid_grad) for z in zs])

    def readings(self, masks: PyTree) -> dict[str, Scalar]:
        """Return `sparsity` of all masks, rounded, and the mean `mask_probability` of active ones.

        After a step they are those of the masks that the step left, as other methods log them;
        `penalty` reads the masks before it.
        """
        found = {"sparsity": overall_sparsity(self.binarize(masks))}
        active, _ = self.split(masks)
        if not active:
            return found
        total = sum(jnp.sum(jax.nn.sigmoid(logits)) for logits in active.values())
        count = jnp.float32(sum(z.size for z in active.values()))
        return {**found, "mask_probability": total / count}

    def penalty(self, masks: PyTree, step: Any) -> tuple[Scalar, dict[str, Scalar]]:
        """Sparsity loss of the active masks.

        Returns:
            The weighted, annealed loss, float32; and `sparsity` (of the active rounded masks),
            `sparsity_gap` (its distance from the target) and `anneal_rate` (1 at the start, 0 at
            the end) to log.
        """
        active, _ = self.split(masks)
        if not active:
            return jnp.zeros((), jnp.float32), {}
        targets = self.targets(active)
        now, gap = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32)
        for group, target in enumerate(targets.sparsities):
            members = zip(active.values(), targets.groups, strict=True)
            logits = [mask for mask, g in members if g == group]
            sparse = 1.0 - kept_fraction(logits, self.bypass_sigmoid_grad)
            share = jnp.float32(targets.sizes[group] / sum(targets.sizes))
            now += share * sparse
            gap += share * jnp.abs(jnp.float32(target) - sparse)
        progress = jnp.minimum(1.0, jnp.asarray(step, jnp.float32) / self.total_steps)
        rate = (1.0 + jnp.cos(progress * jnp.float32(jnp.pi))) / 2.0
        loss = gap * jnp.float32(self.loss_weight) * (1.0 - rate)
        return loss, {"sparsity": now, "sparsity_gap": gap, "anneal_rate": rate}
