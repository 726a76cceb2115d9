"""References of a split, turned into numbers once, and handed out by image."""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int

from sparsecap_jax.errors import DataError
from sparsecap_jax.scst.vocabulary import END, Vocabulary


class References:
    """The references of N images, at their true lengths.

    Args:
        captions: of each image at least one, words separated by blanks.
        vocabulary: takes up their words.

    Attributes:
        most: references R of the image that has most.
        longest: words L of the longest reference.
        first: int64 `[N + 1]`; those of image i are rows `first[i]:first[i + 1]`.

    Raises:
        DataError: an image without references.
    """

    def __init__(self, captions: Iterable[Sequence[str]], vocabulary: Vocabulary):
        words: list[int] = []
        ends, counts = [0], []
        for number, texts in enumerate(captions):
            if not texts:
                raise DataError(f"image {number} has no references to reward captions with")
            for text in texts:
                words += [vocabulary.add(word) for word in text.split()]
                ends.append(len(words))
            counts.append(len(texts))
        self._words = np.array(words, np.int32)
        self._ends = np.array(ends, np.int64)
        self.first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
        self.most = max(counts, default=1)
        self.longest = max(1, int(np.diff(self._ends).max(initial=0)))

    def __len__(self) -> int:
        return len(self.first) - 1

    def rows(self, images: Int[np.ndarray, "*B"]) -> Int[np.ndarray, "*B R"]:
        """Return rows of the references of images; -1 for missing ones and those of image -1."""
        rows = self.first[images][..., None] + np.arange(self.most)
        present = (images[..., None] >= 0) & (rows < self.first[images + 1][..., None])
        return np.where(present, rows, -1)

    def gather(
        self, images: Int[np.ndarray, "*B"]
    ) -> tuple[Int[np.ndarray, "*B R L"], Int[np.ndarray, "*B R"]]:
        """Return words and lengths of the references of images, in one shape for all batches.

        Image -1 only fills a batch up. Lengths are -1 where an image has fewer than R references.
        """
        return self.take(self.rows(images))

    def take(
        self, rows: Int[np.ndarray, "*B"]
    ) -> tuple[Int[np.ndarray, "*B L"], Int[np.ndarray, "*B"]]:
        """Return int32 words, `END` after the last, and lengths of rows; -1 for row -1."""
        lengths = np.where(rows >= 0, self._ends[rows + 1] - self._ends[rows], -1)
        places = np.arange(self.longest)
        inside = places < lengths[..., None]
        at = np.where(inside, self._ends[rows][..., None] + places, 0)
        words = self._words[at] if len(self._words) else at
        return np.where(inside, words, END).astype(np.int32), lengths.astype(np.int32)
