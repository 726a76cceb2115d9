"""Words of the scorers as numbers.

A scorer's vocabulary has the tokenizer's words and those of the references and of the document
frequencies: a reference's word that the tokenizer does not know then never equals a sampled
unknown.
"""

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
            self.index.setdefault(word, len(self.index))

    def __len__(self) -> int:
        return len(self.index)

    def add(self, word: str) -> int:
        """Return the number of `word`, a new one where it has none."""
        return self.index.setdefault(word, len(self.index))

    def encode(
        self, captions: Sequence[str], *, grow: bool = False
    ) -> tuple[Int[np.ndarray, "N T"], Int[np.ndarray, " N"]]:
        """Return the numbers of the words of captions, separated by blanks.

        Args:
            captions: N captions.
            grow: whether new words join the vocabulary; else they get numbers beyond it, equal
                ones the same within this call.

        Returns:
            int32 words, `END` after the last, at least one column; and the lengths.
        """
        index, new = self.index, (self.index if grow else {})
        first = 0 if grow else len(index)
        rows = []
        for text in captions:
            row = [index.get(word) for word in text.split()]
            if None in row:
                row = [
                    new.setdefault(word, first + len(new)) if number is None else number
                    for word, number in zip(text.split(), row, strict=True)
                ]
            rows.append(row)
        lengths = np.array([len(row) for row in rows], np.int32)
        ids = np.full((len(rows), max(1, lengths.max(initial=0))), END, np.int32)
        inside = np.arange(ids.shape[1]) < lengths[:, None]
        ids[inside] = [word for row in rows for word in row]
        return ids, lengths
