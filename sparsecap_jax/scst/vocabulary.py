"""Words of the scorers as numbers.

A scorer's vocabulary has the tokenizer's words and those of the references and of the document
frequencies: a reference's word that the tokenizer does not know then never equals a sampled
unknown.
"""

import collections
import itertools
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int

END = -1  # follows the last word of a caption


class Vocabulary:
    """Numbers of words, in the order in which they came.

    Args:
        words: the first ones.

    Attributes:
        index: number of each word.
    """

    def __init__(self, words: Iterable[str] = ()):
        self.index: dict[str, int] = {}
        for word in words:
            self.add(word)

    def __len__(self) -> int:
        return len(self.index)

    def add(self, word: str) -> int:
        """Return the number of `word`, a new one where it has none."""
        return self.index.setdefault(word, len(self.index))

    def encode(
        self, captions: Sequence[str]
    ) -> tuple[Int[np.ndarray, "N T"], Int[np.ndarray, " N"]]:
        """Return the numbers of the words of captions, separated by blanks.

        Unknown words get numbers beyond the vocabulary, equal ones the same within this call.

        Returns:
            int32 words, `END` after the last, at least one column; and the lengths.
        """
        unknown = collections.defaultdict(itertools.count(len(self.index)).__next__)
        rows = [
            [self.index[word] if word in self.index else unknown[word] for word in text.split()]
            for text in captions
        ]
        lengths = np.array([len(row) for row in rows], np.int32)
        ids = np.full((len(rows), max(1, lengths.max(initial=0))), END, np.int32)
        inside = np.arange(ids.shape[1]) < lengths[:, None]
        ids[inside] = [word for row in rows for word in row]
        return ids, lengths
