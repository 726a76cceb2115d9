"""CIDEr-D and BLEU on the host, in float64, and compiled, where nothing leaves the device.

On the device document frequencies lie in sorted tables, the continuations of each n-gram in a row;
they are looked up by binary search.
"""

import math
from collections.abc import Sequence
from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from sparsecap_jax.errors import DataError
from sparsecap_jax.scst.document_frequency import MAX_N, DocumentFrequency
from sparsecap_jax.scst.formulas import norms, own_counts, scores
from sparsecap_jax.scst.words import References, Vocabulary
from sparsecap_jax.types import ArrayLike

_CHUNK = 64  # captions scored at once: what they need then stays in the processor's cache


class HostScorer:
    """Scores captions against references that are prepared once.

    Args:
        document_frequency: of the n-grams.
        references: captions of each image, words separated by blanks.
        vocabulary: numbers of words that continue those of `document_frequency`; None: its own.

    Raises:
        DataError: an image without references.
    """

    def __init__(
        self,
        document_frequency: DocumentFrequency,
        references: References | Sequence[Sequence[str]],
        vocabulary: Vocabulary | None = None,
    ):
        self.vocabulary = vocabulary or Vocabulary(document_frequency.words)
        if not isinstance(references, References):
            references = References(references, self.vocabulary)
        self.references = references
        self._frequency = document_frequency
        self._norms = np.full((int(references.first[-1]), 4), np.nan)

    def score_texts(
        self, captions: Sequence[Sequence[str]], images: Int[np.ndarray, " B"] | None = None
    ) -> tuple[Float[np.ndarray, "B K"], Float[np.ndarray, "B K 4"]]:
        """Score K captions of each of B images.

        Args:
            captions: for each image its captions, as many for all; they may be empty.
            images: numbers of the images; None: all, in order.

        Returns:
            CIDEr-D, and BLEU-1 to 4.

        Raises:
            DataError: numbers of captions that differ, or do not fit the images.
        """
        counts = {len(texts) for texts in captions}
        if len(counts) != 1:
            raise DataError(f"captions per image: found {sorted(counts)}; expected the same number")
        images = np.arange(len(self.references)) if images is None else np.asarray(images)
        if len(images) != len(captions):
            raise DataError(f"found captions of {len(captions)} images, expected {len(images)}")
        ids, lengths = self.vocabulary.encode([text for texts in captions for text in texts])
        shape = len(captions), counts.pop()
        return self.score_ids(ids.reshape(*shape, -1), lengths.reshape(shape), images)

    def score_ids(
        self,
        ids: Int[np.ndarray, "B K T"],
        lengths: Int[np.ndarray, "B K"],
        images: Int[np.ndarray, " B"],
    ) -> tuple[Float[np.ndarray, "B K"], Float[np.ndarray, "B K 4"]]:
        """Score captions given as numbers of words; see `score_texts`."""
        image = np.repeat(images, ids.shape[1])
        flat = ids.reshape(-1, ids.shape[-1]), lengths.reshape(-1), image
        starts = range(0, len(image), _CHUNK)
        parts = [self._score(*(array[i : i + _CHUNK] for array in flat)) for i in starts]
        ciders, bleus = (np.concatenate(part) for part in zip(*parts, strict=True))
        return ciders.reshape(lengths.shape), bleus.reshape(*lengths.shape, 4)

    def _score(self, ids, lengths, images):
        """Score captions of one image each; norms of references are computed when first met."""
        distinct, of = np.unique(images, return_inverse=True)
        rows = self.references.rows(distinct)
        words, counts = self.references.take(rows)
        words = words[..., : max(1, counts.max())]
        new = (rows >= 0) & np.isnan(self._norms[rows, 0])
        if np.any(new):
            repeats = own_counts(np, words[new], counts[new], np.float64)
            self._norms[rows[new]] = norms(np, repeats, self._frequency.idf(words[new]))
        known = np.where(rows[..., None] >= 0, self._norms[rows], 0.0)
        return scores(np, ids, lengths, self._frequency.idf(ids), words[of], counts[of], known[of])


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

    idf: tuple[Float[ArrayLike, " _"], ...]
    lasts: tuple[Int[ArrayLike, " _"], ...]
    starts: tuple[Int[ArrayLike, " _"], ...]
    unseen: Float[ArrayLike, ""]
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
