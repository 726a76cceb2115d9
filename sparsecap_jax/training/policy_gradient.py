"""The policy gradient of sampled captions, by a teacher-forced pass in micro-batches.

    loss = -sum(log p(token) * advantage(caption)) / number of tokens

The pass runs on encoded images and without dropout, as the search did that found the captions:
both compute the same log-probs. Each micro-batch is computed for as many words as it holds, out of
few sizes that are compiled.
"""

import dataclasses
import functools
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from sparsecap_jax.models import packed_method
from sparsecap_jax.training.losses import reward_loss
from sparsecap_jax.types import PyTree


@no_type_check  # JAX rebuilds pytrees with leaves that are no arrays
@struct.dataclass
class Samples:
    """Sampled captions `[B, K, T]` with their advantages.

    Attributes:
        tokens: int32 `[B, K, T]`, without BOS.
        inside: bool `[B, K, T]`, which tokens count: all up to EOS, itself included.
        log_probs: float32 `[B, K, T]`, as the search found them.
        advantages: float32 `[B, K]`.
    """

    tokens: Int[Array, "B K T"]
    inside: Bool[Array, "B K T"]
    log_probs: Float[Array, "B K T"]
    advantages: Float[Array, "B K"]


def split_floats(whole: PyTree) -> tuple[PyTree, PyTree]:
    """Return the leaves that gradients flow through, and the others; None in place of the rest."""
    floats = jax.tree.map(lambda x: x if jnp.issubdtype(x.dtype, jnp.inexact) else None, whole)
    others = jax.tree.map(lambda x: None if jnp.issubdtype(x.dtype, jnp.inexact) else x, whole)
    return floats, others


def merge_floats(floats: PyTree, others: PyTree) -> PyTree:
    """Undo `split_floats`."""
    return jax.tree.map(
        lambda x, other: other if x is None else x, floats, others, is_leaf=lambda x: x is None
    )


@dataclasses.dataclass(frozen=True)
class PolicyGradient:
    """Loss of sampled captions, and its gradients.

    Attributes:
        model: the captioner.
        bos_id: the token that captions start from.
        micro_batch: captions computed at once; 0: all.
        buckets: sizes that are compiled.
    """

    model: nn.Module
    bos_id: int
    micro_batch: int = 0
    buckets: int = 1

    def __call__(
        self, params: PyTree, floats: PyTree, others: PyTree, samples: Samples
    ) -> tuple[Float[Array, ""], tuple[PyTree, PyTree], Float[Array, ""]]:
        """Differentiate the loss of all captions; see `split_floats` of the encoded images.

        Returns:
            The loss; its gradients with respect to `params` and `floats`; and the largest
            difference between the log-probs of search and loss.
        """
        images, count, length = samples.tokens.shape
        size = self.micro_batch
        run = functools.partial(self._in_smallest, jnp.maximum(jnp.sum(samples.inside), 1))
        if not size or size >= images * count:
            # Packing leaves out padding wherever it is: buckets limit the words.
            sizes = [(length, words) for words in self._sizes(images * count * length, 0.5)]
            whole = params, floats, others, samples
            (loss, gap), grads = run(sizes, 1, jnp.sum(samples.inside), *whole)
            return loss, grads, gap
        # Captions of one micro-batch are about as long as each other: buckets cut the token axis.
        sizes = [(cut, size * cut) for cut in self._sizes(length, 1 / self.buckets)]

        def add(sums, part):
            image, part = part
            pick = functools.partial(jax.tree.map, lambda leaf: leaf[image])
            taken, pull = jax.vjp(pick, floats)
            longest = jnp.max(jnp.sum(part.inside, axis=-1))
            (loss, gap), (grads, context_grads) = run(
                sizes, 0, longest, params, taken, pick(others), part
            )
            return jax.tree.map(jnp.add, sums, (loss, (grads, *pull(context_grads)))), gap

        zeros = jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, (params, floats))
        (loss, grads), gaps = jax.lax.scan(add, zeros, sorted_parts(samples, size))
        return loss, grads, jnp.max(gaps)

    def _sizes(self, most: int, least: float) -> list[int]:
        """Return evenly spaced sizes between `least * most` and `most`."""
        shares = np.linspace(least, 1.0, self.buckets) if self.buckets > 1 else np.ones(1)
        return sorted({max(1, int(np.ceil(share * most))) for share in shares})

    def _in_smallest(self, total, sizes: list[tuple[int, int]], axis: int, needed, *args):
        """Differentiate the loss in the first size of (tokens, words) that holds what is needed."""
        value_and_grad = jax.value_and_grad(self._loss, (0, 1), has_aux=True)
        branches = [functools.partial(value_and_grad, size=size, total=total) for size in sizes]
        limits = jnp.asarray([size[axis] for size in sizes], jnp.int32)
        return jax.lax.switch(jnp.searchsorted(limits, needed.astype(jnp.int32)), branches, *args)

    def _loss(self, params, floats, others, samples: Samples, *, size: tuple[int, int], total):
        """Return the share of these captions in the loss of `total` words, and the gap."""
        length, words = size
        whole = samples.tokens, samples.inside, samples.log_probs
        tokens, inside, found = (leaf[..., :length] for leaf in whole)
        bos = jnp.full_like(tokens[..., :1], self.bos_id)
        inputs = jnp.concatenate([bos, tokens[..., :-1]], axis=-1)
        arguments = merge_floats(floats, others), inputs, inside, words
        method = packed_method(self.model)
        result: Any = self.model.apply({"params": params}, *arguments, method=method)
        log_probs, places = result

        def at(values):
            return jnp.take(values.reshape(-1), places, mode="fill", fill_value=0)

        advantages = jnp.broadcast_to(samples.advantages[..., None], tokens.shape)
        chosen = jnp.take_along_axis(log_probs, at(tokens)[:, None], axis=-1)[:, 0]
        real = places < tokens.size
        # Every word is a row here; the sum is divided by the words of all micro-batches.
        mean = reward_loss(chosen[:, None], at(advantages), real[:, None])
        gap = jnp.max(jnp.where(real, jnp.abs(chosen - at(found)), 0))
        return mean * jnp.maximum(jnp.sum(real), 1) / total.astype(jnp.float32), gap


def sorted_parts(samples: Samples, size: int) -> tuple[Int[Array, "M size"], Samples]:
    """Cut captions, sorted by length, into M parts of `size` images with one caption each.

    Captions without words fill the first part up.

    Returns:
        The image of each caption, and the captions, leaves `[M, size, 1, ...]`.
    """
    images, count, _ = samples.tokens.shape
    short = -(images * count) % size
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), samples)
    order = jnp.argsort(jnp.sum(flat.inside, axis=-1))

    def cut(leaf):
        leaf = jnp.pad(leaf[order], [(short, 0)] + [(0, 0)] * (leaf.ndim - 1))
        return leaf.reshape(-1, size, *leaf.shape[1:])

    image = jnp.repeat(jnp.arange(images, dtype=jnp.int32), count)
    return cut(image), jax.tree.map(lambda leaf: cut(leaf)[:, :, None], flat)
