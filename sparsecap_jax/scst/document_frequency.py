"""In how many images each n-gram occurs: built from captions, stored as plain arrays, looked up.

The n-grams form a trie: one of order n is known by the number of its first n - 1 words in the table
of order n - 1, and by its last word. Tables are sorted, so that a lookup is a binary search.
"""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float, Int

from sparsecap_jax.arrays import ArrayFile
from sparsecap_jax.errors import DataError
from sparsecap_jax.files import foreign_errors, write_atomically
from sparsecap_jax.settings import Range, build

MAX_N = 4
FORMAT, FORMAT_VERSION = "sparsecap_jax document frequencies", 1
# Type and lowest order of the tables of each field.
_TABLES = {"counts": (np.float64, 1), "parents": (np.int32, 2), "lasts": (np.int32, 2)}
_HEADER = ("num_images", "eos", "unk", "dataset", "tokens")


@dataclasses.dataclass(frozen=True, eq=False)
class DocumentFrequency:
    """Document frequencies of all n-grams of one to four words.

    Attributes:
        words: the vocabulary; word i is the unigram number i.
        counts: float64 `[M_n]` for n = 1 to 4, images that have each n-gram.
        parents: int32 `[M_n]` for n = 2 to 4, number of the first n - 1 words in their table;
            sorted, by `lasts` where equal.
        lasts: int32 `[M_n]` for n = 2 to 4, the last word.
        num_images: images counted.
        eos: the word that was put at the end of every caption, "" for none.
        unk: the word that stands for rare words, "" where they were kept.
        dataset: what was counted, for people.
        tokens: "words", or "ids" where the words are numbers of some vocabulary.
    """

    words: tuple[str, ...]
    counts: tuple[Float[np.ndarray, " _"], ...]
    parents: tuple[Int[np.ndarray, " _"], ...]
    lasts: tuple[Int[np.ndarray, " _"], ...]
    num_images: Annotated[int, Range(1)]
    eos: str = ""
    unk: str = ""
    dataset: str = ""
    tokens: str = "words"

    def idf(self, ids: Int[np.ndarray, "*N T"]) -> Float[np.ndarray, "*N T 4"]:
        """Return `log(images) - log(max(1, df))` of the n-grams at each place, df their images.

        Args:
            ids: words of captions, numbers as in `words`; others are unknown words, and negative
                ones follow the end of a caption.

        Returns:
            float64; entry `[..., t, n - 1]` is of the n words from t on, whatever lies there.
        """
        return np.log(float(self.num_images)) - np.log(np.maximum(1.0, self.look_up(ids)))

    def look_up(self, ids: Int[np.ndarray, "*N T"]) -> Float[np.ndarray, "*N T 4"]:
        """Return the document frequencies of the n-grams at each place, 0 for unknown ones."""
        size, rest = len(self.words), ids.reshape(-1, ids.shape[-1]).astype(np.int64)
        rest = np.where((rest >= 0) & (rest < size), rest, -1)
        nodes, frequencies = np.zeros_like(rest), []
        for counts, keys in zip(self.counts, self._keys, strict=True):
            queries = nodes * size + rest
            at = np.searchsorted(keys, queries)
            nodes = np.where((nodes >= 0) & (rest >= 0) & (keys[at] == queries), at, -1)
            images = counts[nodes] if len(counts) else 0.0
            frequencies.append(np.where(nodes >= 0, images, 0.0))
            rest = np.concatenate([rest[:, 1:], np.full((len(rest), 1), -1)], axis=1)
        return np.stack(frequencies, axis=-1).reshape(*ids.shape, MAX_N)

    def document_count(self, ngram: Sequence[str]) -> float:
        """Return the number of images that have `ngram`, one to four words."""
        if not 1 <= len(ngram) <= MAX_N:
            return 0.0
        ids = np.array([[self._index.get(word, -1) for word in ngram]])
        return float(self.look_up(ids)[0, 0, len(ngram) - 1])

    def __len__(self) -> int:
        return sum(len(counts) for counts in self.counts)

    def save(self, path: str | pathlib.Path) -> None:
        """Write one `.npz` of plain arrays, all or nothing; reading executes none of it."""
        header = {"format": FORMAT, "version": FORMAT_VERSION}
        header |= {name: getattr(self, name) for name in _HEADER}
        arrays: dict[str, Any]
        arrays = {"header": _bytes(json.dumps(header)), "words": _bytes("\n".join(self.words))}
        for field, (_, first) in _TABLES.items():
            for n, table in enumerate(getattr(self, field), start=first):
                arrays[f"{field}_{n}"] = table
        with write_atomically(path, "wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "DocumentFrequency":
        """Read what `save` wrote.

        Raises:
            DataError: missing, not such a file, of another version, or inconsistent.
        """
        problem = (
            "not document frequencies made by sparsecap prepare_data df (which also converts "
            "pickles of other codes)"
        )
        where = f"{path}: document frequencies"
        fields: dict[str, Any] = {}
        with ArrayFile(path, problem) as file:
            text = file.read("header", "u", 1).tobytes()
            with foreign_errors(f"{where}: header"):
                header = {**json.loads(text)}
            format_ = header.get("format"), header.get("version")
            if format_ != (FORMAT, FORMAT_VERSION):
                expected = FORMAT, FORMAT_VERSION
                raise DataError(f"{where}: format and version are {format_}; expected {expected}")
            words = file.read("words", "u", 1).tobytes()
            for field, (kind, first) in _TABLES.items():
                kinds = "f" if kind is np.float64 else "iu"
                names = [f"{field}_{n}" for n in range(first, MAX_N + 1)]
                fields[field] = tuple(file.read(name, kinds, 1).astype(kind) for name in names)
        with foreign_errors(where):
            fields["words"] = tuple(words.decode().split("\n"))
            table = build(cls, {name: header[name] for name in _HEADER}, "header", **fields)
            table._check()
        return table

    def _check(self) -> None:
        if len(self.counts[0]) != len(self.words):
            raise ValueError("counts_1 does not fit num_images or words")
        for n, (parents, lasts, keys) in enumerate(
            zip(self.parents, self.lasts, self._keys[1:], strict=True), start=2
        ):
            sizes = {len(parents), len(lasts), len(self.counts[n - 1])}
            if len(sizes) != 1 or np.any(np.diff(keys) <= 0):
                raise ValueError(f"the table of {n}-grams is not sorted or has gaps")
            for values, limit in ((parents, len(self.counts[n - 2])), (lasts, len(self.words))):
                if np.any((values < 0) | (values >= limit)):
                    raise ValueError(f"the table of {n}-grams refers to missing entries")

    @functools.cached_property
    def _index(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}

    @functools.cached_property
    def _keys(self) -> list[np.ndarray]:
        """Keys of each order, the last one beyond them all; words are children of one root."""
        size, keys = len(self.words), [np.arange(len(self.words))]
        for parents, lasts in zip(self.parents, self.lasts, strict=True):
            keys.append(parents.astype(np.int64) * size + lasts)
        return [np.append(table, np.iinfo(np.int64).max) for table in keys]


def count_documents(
    references: Iterable[Sequence[str]],
    *,
    eos: str = "",
    unk: str = "",
    known: Iterable[str] | None = None,
    dataset: str = "",
) -> DocumentFrequency:
    """Count in how many images each n-gram occurs.

    Args:
        references: captions of each image, words separated by blanks.
        eos: a word to put at the end of every caption: the reference's files have `<eos>`.
        unk: a word to put in the place of words that are not in `known`.
        known: words to keep; None: all of them.
        dataset: see `DocumentFrequency`.

    Raises:
        DataError: there are no images.
    """
    keep = None if known is None else {*known, *([eos] if eos else [])}
    index: dict[str, int] = {}
    ids: list[int] = []
    left: list[int] = []
    images: list[int] = []
    count = 0
    for captions in references:
        for caption in captions:
            words = [*caption.split(), eos] if eos else caption.split()
            if keep is not None:
                words = [word if word in keep else unk for word in words]
            ids += [index.setdefault(word, len(index)) for word in words]
            left += range(len(words), 0, -1)
            images += [count] * len(words)
        count += 1
    if not count:
        raise DataError("document frequencies: there are no images to count")
    flat, image = np.array(ids, np.int64), np.array(images, np.int64)

    def images_of(n, starts, nodes, size):
        seen = np.unique(nodes * count + image[starts]) // count
        return np.bincount(seen, minlength=size).astype(np.float64)

    counts, parents, lasts = _trie(
        len(index), np.array(left), lambda n, starts: flat[starts + n - 1], images_of
    )
    names = {"eos": eos, "unk": unk, "dataset": dataset}
    return DocumentFrequency(tuple(index), counts, parents, lasts, count, **names)


def from_ngrams(
    frequencies: Mapping[tuple[str, ...], float], num_images: int, **fields: Any
) -> DocumentFrequency:
    """Make tables of a dict that has the number of images of each n-gram, one to four words.

    N-grams whose beginnings are missing are fine. `fields` are those of `DocumentFrequency`.
    """
    index: dict[str, int] = {}
    rows = np.full((len(frequencies), MAX_N), -1, np.int64)
    for row, ngram in zip(rows, frequencies, strict=True):
        row[: len(ngram)] = [index.setdefault(word, len(index)) for word in ngram]
    values = np.fromiter(frequencies.values(), np.float64, len(frequencies))
    sizes = np.sum(rows >= 0, axis=1)

    def images_of(n, starts, nodes, size):
        counts, whole = np.zeros(size), sizes[starts] == n
        counts[nodes[whole]] = values[starts[whole]]
        return counts

    counts, parents, lasts = _trie(
        len(index), sizes, lambda n, starts: rows[starts, n - 1], images_of
    )
    return DocumentFrequency(tuple(index), counts, parents, lasts, num_images, **fields)


def _trie(
    vocabulary_size: int, left: np.ndarray, nth_word: Callable, images_of: Callable
) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """Number n-grams that begin at places with so many words `left`; return `_TABLES`.

    `nth_word(n, starts)` are words after places, `images_of(n, starts, nodes, size)` the counts of
    the `size` n-grams, of which `nodes` begin at `starts`.
    """
    starts, counts, parents, lasts = np.arange(len(left)), [], [], []
    nodes, size = nth_word(1, starts), vocabulary_size
    for n in range(1, MAX_N + 1):
        fits = left[starts] >= n
        starts, nodes = starts[fits], nodes[fits]
        if n > 1:
            keys = nodes * vocabulary_size + nth_word(n, starts)
            keys, nodes = np.unique(keys, return_inverse=True)
            parents.append((keys // vocabulary_size).astype(np.int32))
            lasts.append((keys % vocabulary_size).astype(np.int32))
            size = len(keys)
        counts.append(images_of(n, starts, nodes, size))
    return tuple(counts), tuple(parents), tuple(lasts)


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-8"), np.uint8)
