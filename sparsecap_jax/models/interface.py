"""Interface of captioning models, with defaults for its optional parts."""

from collections.abc import Callable
from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from sparsecap_jax.models.packing import nan_if_lost, pack_rows
from sparsecap_jax.types import ArrayLike, PyTree


class CaptionModel(nn.Module):
    """Base of captioning models; `sparsecap_jax.models` describes the methods to write.

    A Linen module with those methods needs no base class: the defaults below serve it as well.

    Attributes:
        needs_boxes: whether `encode` reads `Regions.boxes`.
        samples_inputs: whether `__call__` takes `sample_prob`, the probability with which a token
            is replaced by one of the model's own (scheduled sampling, rng stream "sampling").
    """

    needs_boxes: ClassVar[bool] = False
    samples_inputs: ClassVar[bool] = False

    def prepare(self) -> None:
        """Store what decoding makes of the weights alone in the collection "prepared".

        `decoding.prepare` calls it once for many batches. By default there is nothing.
        """

    def decode_packed(
        self,
        context: PyTree,
        tokens: Int[ArrayLike, "B K T"],
        token_mask: Bool[ArrayLike, "B K T"],
        size: int,
        *,
        train: bool = False,
    ) -> tuple[Float[Array, "N V"], Int[Array, " N"]]:
        """Teacher forcing on encoded images, with results for the tokens of `token_mask` alone.

        This default steps through the captions; models override it to save work on padding.

        Args:
            context: result of `encode`.
            tokens: captions from BOS on.
            token_mask: tokens that count, in each caption a prefix.
            size: number N of slots for tokens, at least the number of those that count; with too
                few all results are NaN.
            train: whether dropout is on (rng stream "dropout").

        Returns:
            Log-probs of the token that follows each counting token, and the place of each in the
            flattened `[B * K * T]`; slots without a token have place B * K * T.
        """
        tokens, mask = jnp.asarray(tokens), jnp.asarray(token_mask)
        mode, rows = {"train": True} if train else {}, pack_rows(mask, size)

        def step(model: nn.Module, carry: PyTree, tokens: Array, context: PyTree) -> tuple:
            return model.step(carry, tokens, context, **mode)

        carry = self.init_carry(context, tokens.shape[1])
        log_probs = scan_words(step, 1)(self, carry, tokens, context)[1]
        return nan_if_lost(rows.gather(log_probs), mask), rows.flat_places()


def scan_words(step: Callable, broadcast: int) -> Callable:
    """Lift `step` to a scan over words, the third axis of its inputs and outputs.

    Args:
        step: `(module, carry, inputs [B, K, ...], *broadcast) -> (carry, outputs [B, K, ...])`.
        broadcast: number of arguments that are the same for every word.

    Returns:
        `(module, carry, inputs [B, K, T, ...], *broadcast) -> (carry, outputs [B, K, T, ...])`.
    """
    return nn.scan(
        step,
        variable_axes={"intermediates": 2},
        variable_broadcast="params",
        split_rngs={"params": False, "dropout": True, "sampling": True},
        in_axes=(2, *[nn.broadcast] * broadcast),
        out_axes=2,
    )


def packed_method(model: nn.Module) -> Callable:
    """Return `decode_packed` of a model, or the default, for `model.apply(..., method=...)`."""
    return getattr(type(model), "decode_packed", CaptionModel.decode_packed)


def packs_words(model: nn.Module) -> bool:
    """Return whether `decode_packed` saves a model work: whether it has one of its own."""
    return packed_method(model) is not CaptionModel.decode_packed
