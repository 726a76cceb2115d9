"""Words of many captions in one axis, so that matrix products do no work on padding."""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from sparsecap_jax.types import Size


@struct.dataclass
class Rows:
    """Layout of the words `[B, K, T]` of K captions for each of B images in one axis of N words.

    Regions have the same layout, as one row of T regions per image.

    Attributes:
        images, rows, length: B, K and T.
        places: int32 `[N]`, for each word its place in the flattened `[B * K * T]`, and B * K * T
            where there is none; None when all places follow one another (N = B * K * T).
        slots: int32 `[B * K * T]`, the inverse of `places`, N for places left out.
    """

    images: Size = struct.field(pytree_node=False)
    rows: Size = struct.field(pytree_node=False)
    length: Size = struct.field(pytree_node=False)
    places: Int[Array, " N"] | None = None
    slots: Int[Array, " M"] | None = None

    def flat_places(self) -> Int[Array, " N"]:
        """Return `places`, also where they are implied."""
        if self.places is None:
            return jnp.arange(self.images * self.rows * self.length, dtype=jnp.int32)
        return self.places

    def spread(self, words: Float[Array, "N D"], batch: Size = None) -> Float[Array, "G L D"]:
        """Lay words out as `[batch, ..., D]`, B * K by default; places left out become 0."""
        batch = self.images * self.rows if batch is None else batch
        if self.places is not None:
            words = _take(words, self.slots, self.places)
        return words.reshape(batch, -1, words.shape[-1])

    def take_tokens(self, tokens: Int[Array, "B K T"], empty: int) -> Int[Array, " N"]:
        """Return the tokens at `places`, `empty` where there is none."""
        return jnp.take(tokens.reshape(-1), self.flat_places(), mode="fill", fill_value=empty)

    def gather(self, spread: Float[Array, "... D"]) -> Float[Array, "N D"]:
        """Undo `spread`."""
        words = spread.reshape(-1, spread.shape[-1])
        return words if self.places is None else _take(words, self.places, self.slots)


def pack_rows(mask: Bool[Array, "B K T"], size: int) -> Rows:
    """Make room for `size` words: those of `mask`, in order; words beyond `size` are lost."""
    kept = mask.reshape(-1)
    count = jnp.cumsum(kept, dtype=jnp.int32)
    slots = jnp.where(kept & (count <= size), count - 1, jnp.int32(size))
    everywhere = jnp.arange(kept.size, dtype=jnp.int32)
    empty = jnp.full((size,), kept.size, jnp.int32)
    images, rows, length = mask.shape
    return Rows(images, rows, length, empty.at[slots].set(everywhere, mode="drop"), slots)


def nan_if_lost(words: Float[Array, "N D"], mask: Bool[Array, "B K T"]) -> Float[Array, "N D"]:
    """Make all words NaN where `mask` has more than N: too small a size cannot go unnoticed."""
    return jnp.where(jnp.sum(mask) <= words.shape[0], words, jnp.float32(jnp.nan))


@jax.custom_vjp
def _take(words, index, inverse):
    """Return rows `index` of `words`, 0 beyond the end.

    No row is taken twice, so that the gradient is a `take` by the inverse index, too: on a CPU
    much cheaper than the scatter that autodiff would make.
    """
    return jnp.take(words, index, axis=0, mode="fill", fill_value=0.0)


_take.defvjp(
    lambda words, index, inverse: (_take(words, index, inverse), (index, inverse)),
    lambda saved, grads: (_take(grads, *saved[::-1]), None, None),
)
