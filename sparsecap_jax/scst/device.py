"""CIDEr-D and BLEU of numbers of words, compiled: nothing leaves the device.

Document frequencies lie in sorted tables, the continuations of each n-gram in a row; they are
looked up by binary search.
"""

import math
from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from sparsecap_jax.scst.document_frequency import MAX_N, DocumentFrequency
from sparsecap_jax.scst.formulas import norms, own_counts, scores


@no_type_check
@struct.dataclass
class IdfTables:
    """Inverse document frequencies of a trie of n-grams; a pytree, to be passed to compiled code.

    Attributes:
        idf: for n = 1 to 4, float32 `[M_n + 1]`.
        lasts: for n = 2 to 4, int32 `[M_n + 1]`, last words; sorted within a row of continuations.
        starts: for n = 2 to 4, int32 `[M_(n-1) + 2]`, where continuations of each n-gram begin.
        unseen: float32 `[]`, the idf of what is in no table.
        rounds: for n = 2 to 4, steps of the search.
    """

    idf: tuple[Float[Array, " _"], ...]
    lasts: tuple[Int[Array, " _"], ...]
    starts: tuple[Int[Array, " _"], ...]
    unseen: Float[Array, ""]
    rounds: tuple[int, ...] = struct.field(pytree_node=False)

    def __call__(self, ids: Int[Array, "*N T"]) -> Float[Array, "*N T 4"]:
        """Return what `DocumentFrequency.idf` returns, in float32."""
        size = self.idf[0].shape[0]
        nodes = jnp.where((ids >= 0) & (ids < size), ids, -1)
        rest, columns = nodes, [self._take(0, nodes)]
        for n in range(1, MAX_N):
            ended = jnp.full_like(rest[..., :1], -1)
            rest = jnp.concatenate([rest[..., 1:], ended], axis=-1)
            nodes = self._descend(n - 1, nodes, rest)
            columns.append(self._take(n, nodes))
        return jnp.stack(columns, axis=-1)

    def _take(self, order: int, nodes: Int[Array, "*N T"]) -> Float[Array, "*N T"]:
        values = jnp.take(self.idf[order], jnp.maximum(nodes, 0), mode="clip")
        return jnp.where(nodes >= 0, values, self.unseen)

    def _descend(
        self, table: int, nodes: Int[Array, "*N T"], words: Int[Array, "*N T"]
    ) -> Int[Array, "*N T"]:
        """Numbers of the n-grams that continue `nodes` by `words`; -1 where there are none."""
        lasts, starts = self.lasts[table], self.starts[table]
        low = jnp.take(starts, jnp.maximum(nodes, 0), mode="clip")
        end = jnp.take(starts, jnp.maximum(nodes, 0) + 1, mode="clip")

        def halve(_, bounds):
            low, high = bounds
            middle = low + (high - low) // 2
            below = jnp.take(lasts, middle, mode="clip") < words
            return jnp.where(below & (low < high), middle + 1, low), jnp.where(below, high, middle)

        at, _ = jax.lax.fori_loop(0, self.rounds[table], halve, (low, end))
        hit = (at < end) & (jnp.take(lasts, at, mode="clip") == words)
        return jnp.where(hit & (nodes >= 0) & (words >= 0), at, -1)


def idf_tables(frequency: DocumentFrequency) -> IdfTables:
    """Build tables for the device; logarithms are taken in float64."""
    # Each table ends with an entry that stands for no n-gram, so that none is empty.
    counts = [np.append(table, 0.0) for table in frequency.counts]
    unseen = math.log(frequency.num_images)
    idf = tuple(np.float32(unseen - np.log(np.maximum(1.0, table))) for table in counts)
    lasts = tuple(np.append(last, np.int32(-1)) for last in frequency.lasts)
    starts, rounds = [], []
    for n, parents in enumerate(frequency.parents):
        children = np.bincount(parents, minlength=len(frequency.counts[n]))
        starts.append(np.concatenate([[0], np.cumsum(children), [len(parents)]]).astype(np.int32))
        rounds.append(int(children.max(initial=0)).bit_length())
    return IdfTables(idf, lasts, tuple(starts), np.float32(unseen), tuple(rounds))


def score_on_device(
    tables: IdfTables,
    ids: Int[Array, "B K T"],
    lengths: Int[Array, "B K"],
    references: Int[Array, "B R L"],
    reference_lengths: Int[Array, "B R"],
) -> tuple[Float[Array, "B K"], Float[Array, "B K 4"]]:
    """Return CIDEr-D and BLEU-1 to 4 of K captions of each of B images; for compiled code.

    Captions and references are numbers of the scorer's vocabulary; missing references have length
    -1. All scores are float32.
    """
    repeats = own_counts(jnp, references, reference_lengths, jnp.float32)
    reference_norms = norms(jnp, repeats, tables(references))
    shared = references[:, None], reference_lengths[:, None], reference_norms[:, None]
    return scores(jnp, ids, lengths, tables(ids), *shared)
