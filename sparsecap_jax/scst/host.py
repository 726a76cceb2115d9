"""CIDEr-D and BLEU on the host, in float64: of strings, or of numbers of words."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from sparsecap_jax.errors import DataError
from sparsecap_jax.scst.document_frequency import DocumentFrequency
from sparsecap_jax.scst.formulas import norms, own_counts, scores
from sparsecap_jax.scst.words import References, Vocabulary

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
