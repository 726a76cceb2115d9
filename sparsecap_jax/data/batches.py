"""From image numbers to padded regions and token ids; the batches of a split for evaluation.

Captions are encoded once, then chosen and padded by integer indexing.
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int

from sparsecap_jax.data.features import FeatureStore, RegionFeatures
from sparsecap_jax.data.records import Record
from sparsecap_jax.errors import ConfigError, DataError
from sparsecap_jax.types import Batch, Regions

REGION_BUCKETS = (16, 36, 64, 100)


@runtime_checkable
class Tokenizer(Protocol):
    """Tokenizer as the pipeline uses it."""

    pad_id: int

    def encode(self, text: str, max_length: int) -> list[int]:
        """Return ids from BOS to EOS, cut (without EOS) to `max_length`."""


@dataclasses.dataclass(frozen=True)
class EncodedCaptions:
    """All captions of N records, C in all; those of image i are rows `first[i]:first[i + 1]`.

    Attributes:
        tokens: int32 `[C, T]`, PAD after the end.
        lengths: int32 `[C]`, tokens of each caption, BOS and EOS included.
        first: int64 `[N + 1]`.
        pad_id: the PAD token.
    """

    tokens: Int[np.ndarray, "C T"]
    lengths: Int[np.ndarray, " C"]
    first: Int[np.ndarray, " N_plus_1"]
    pad_id: int

    def shuffle(self, rng: np.random.Generator) -> Int[np.ndarray, " C"]:
        """Return caption rows such that those of one image are shuffled among themselves."""
        image = np.repeat(np.arange(len(self.first) - 1), np.diff(self.first))
        return np.lexsort((rng.random(len(self.lengths)), image))

    def choose(
        self, images: Int[np.ndarray, " B"], order: Int[np.ndarray, " C"], seq_per_img: int
    ) -> tuple[Int[np.ndarray, "B S"], Bool[np.ndarray, "B S"]]:
        """Choose `seq_per_img` captions per image, the first ones in `order`.

        Args:
            images: image numbers, -1 for padding rows.
            order: caption rows grouped by image: `shuffle(rng)`, or `arange(C)` for file order.
            seq_per_img: captions per image S.

        Returns:
            Caption rows, and which of them count: an image with fewer than S captions repeats
            them, and the repeats do not count. Rows of images without captions are 0 and do not
            count.
        """
        slots = np.arange(seq_per_img)
        counts = np.where(images < 0, 0, self.first[images + 1] - self.first[images])[:, None]
        places = self.first[images][:, None] + slots % np.maximum(counts, 1)
        rows = order[np.where(counts > 0, places, 0)] if len(order) else np.zeros_like(places)
        return np.where(counts > 0, rows, 0), slots < counts

    def gather(
        self, rows: Int[np.ndarray, "B S"], counting: Bool[np.ndarray, "B S"], length: int
    ) -> tuple[Int[np.ndarray, "B S L"], Bool[np.ndarray, "B S L"]]:
        """Return int32 tokens of caption `rows`, first `length` columns, and their token mask.

        Repeats keep their tokens (a row of PAD alone would leave attention without keys) under a
        mask that is all False; images without any caption get PAD.
        """
        if not len(self.tokens):
            tokens = np.full((*rows.shape, length), self.pad_id, np.int32)
            return tokens, np.zeros(tokens.shape, np.bool_)
        tokens = self.tokens[rows, :length]
        tokens[~counting.any(axis=1)] = self.pad_id
        real = np.arange(length) < self.lengths[rows][..., None]
        return tokens, real & counting[..., None]


def encode_captions(
    records: Sequence[Record], tokenizer: Tokenizer, max_seq_length: int
) -> EncodedCaptions:
    """Encode every caption of `records` once, cut to `max_seq_length` (BOS and EOS counted)."""
    counts = [len(record.captions) for record in records]
    first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
    # Radix tokens may exceed the limit by a part of a word, as in the reference.
    width = getattr(tokenizer, "max_tokens", lambda limit: limit)(max_seq_length)
    tokens = np.full((int(first[-1]), width), tokenizer.pad_id, np.int32)
    lengths = np.zeros(int(first[-1]), np.int32)
    captions = (caption for record in records for caption in record.captions)
    for row, caption in enumerate(captions):
        ids = tokenizer.encode(caption, max_length=max_seq_length)
        tokens[row, : len(ids)] = ids
        lengths[row] = len(ids)
    return EncodedCaptions(tokens, lengths, first, tokenizer.pad_id)


def pad_regions(images: Sequence[RegionFeatures], num_rows: int, num_regions: int) -> Regions:
    """Stack one or more images of one width D into `[num_rows, num_regions, ...]`, zero-padded.

    Rows beyond `len(images)` are zeros, with one valid region so that attention weights can be
    normalised.
    """
    width = images[0].features.shape[1]
    features = np.empty((num_rows, num_regions, width), np.float32)
    boxes = np.zeros((num_rows, num_regions, 4), np.float32)
    fc = np.zeros((num_rows, width), np.float32)
    counts = np.ones(num_rows, np.int32)
    for row, image in enumerate(images):
        count = counts[row] = len(image.features)
        features[row, :count] = image.features
        features[row, count:] = 0
        if image.boxes is not None:
            boxes[row, :count] = image.boxes
        fc[row] = image.fc
    features[len(images) :] = 0
    mask = np.arange(num_regions) < counts[:, None]
    return Regions(features=features, mask=mask, boxes=boxes, fc=fc)


class BatchMaker:
    """Base of training's and evaluation's batches: from image numbers to padded regions.

    Args:
        records: images of the split.
        store: their features.
        batch_size: images in a global batch B.
        region_buckets: sizes of the region axis; a batch takes the smallest that holds it, beyond
            the largest a size of `REGION_BUCKETS` or a multiple of 100.
        process_index: this process, which builds its share of the rows of each batch.
        process_count: number of processes; they must agree on all other arguments.

    Raises:
        ConfigError: a size out of range.
        DataError: no images, or missing features (all at once).
    """

    def __init__(
        self,
        records: Sequence[Record],
        store: FeatureStore,
        *,
        batch_size: int,
        region_buckets: Sequence[int] = REGION_BUCKETS,
        process_index: int = 0,
        process_count: int = 1,
    ):
        if batch_size < 1 or process_count < 1 or batch_size % process_count:
            raise ConfigError(
                f"batch_size: expected a positive multiple of the {process_count} processes, "
                f"found {batch_size}"
            )
        if not 0 <= process_index < process_count:
            raise ConfigError(f"process_index: expected 0 to {process_count - 1}")
        if not region_buckets or min(region_buckets) < 1:
            raise ConfigError(f"region_buckets: expected positive sizes, found {region_buckets}")
        if not records:
            raise DataError("the split has no images")
        self.batch_size = batch_size
        self._ids = [record.image_id for record in records]
        self._store = store
        self._buckets = sorted(region_buckets)
        share = batch_size // process_count
        self._local = slice(process_index * share, (process_index + 1) * share)
        store.check(self._ids)

    def _regions(self, images: np.ndarray) -> Regions:
        """Read this process' rows of a global batch; image number -1 is a padding row."""
        local = [self._store[self._ids[i]] for i in images[self._local] if i >= 0]
        elsewhere = np.delete(images, self._local)
        # All processes must agree on the shape, so the rows of the others count too.
        counts = [len(image.features) for image in local]
        counts += [self._store.num_regions(self._ids[i]) for i in elsewhere if i >= 0]
        largest = max(counts)
        multiple = -(-largest // REGION_BUCKETS[-1]) * REGION_BUCKETS[-1]
        sizes = (*self._buckets, *REGION_BUCKETS, multiple)
        num_regions = next(size for size in sizes if size >= largest)
        num_rows = self._local.stop - self._local.start
        if not local:  # all rows of this process are padding
            nothing = np.zeros((1, self._store.feature_size), np.float32)
            local = [RegionFeatures(nothing, None, nothing[0])]
        return pad_regions(local, num_rows, num_regions)


class EvalBatches(BatchMaker):
    """Batches of a split for decoding and for the validation loss: all images once, in order.

    Iterate it as often as needed. The last batch is padded with rows of `index` -1, a False
    `token_mask` and one valid region of zeros; elsewhere `index` is the position in `records`.

    Args:
        records: images, with or without captions.
        store: their features.
        tokenizer: when given, `tokens` holds the first `seq_per_img` captions of each image, else
            it is empty, `[B, 0, 0]`.
        seq_per_img: captions per image S; those that an image lacks have a False `token_mask`.
        max_seq_length: T.
        prefetch: batches read ahead.
        **options: those of `BatchMaker`; `batch_size` is required.
    """

    def __init__(
        self,
        records: Sequence[Record],
        store: FeatureStore,
        *,
        tokenizer: Tokenizer | None = None,
        seq_per_img: int = 5,
        max_seq_length: int = 18,
        prefetch: int = 2,
        **options: Any,
    ):
        check_sizes(seq_per_img=seq_per_img, max_seq_length=max_seq_length)
        self._captions = None
        if tokenizer is not None:
            self._captions = encode_captions(records, tokenizer, max_seq_length)
        super().__init__(records, store, **options)
        self._seq_per_img = seq_per_img
        self._prefetch = prefetch

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self._ids) // self.batch_size)

    def __getitem__(self, number: int) -> Batch:
        """Build one batch (this process' part of it)."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        images = np.arange(number * self.batch_size, (number + 1) * self.batch_size)
        images[images >= len(self._ids)] = -1
        regions = self._regions(images)
        images = images[self._local]
        if self._captions is None:
            tokens = np.zeros((len(images), 0, 0), np.int32)
            mask = tokens.astype(np.bool_)
        else:
            file_order = np.arange(len(self._captions.tokens))
            rows, counting = self._captions.choose(images, file_order, self._seq_per_img)
            tokens, mask = self._captions.gather(rows, counting, self._captions.tokens.shape[1])
        return Batch(regions=regions, tokens=tokens, token_mask=mask, index=images.astype(np.int32))

    def __iter__(self) -> Iterator[Batch]:
        """Yield all batches."""
        yield from self.read(range(len(self)))

    def read(self, numbers: Iterable[int]) -> Iterator[Batch]:
        """Yield some batches, the next ones being read meanwhile (no Grain: it imports slowly)."""
        numbers = list(numbers)
        if len(numbers) == 1:
            yield self[numbers[0]]
            return
        with ThreadPoolExecutor(1, thread_name_prefix="eval-batches") as executor:
            batches = (executor.submit(self.__getitem__, number) for number in numbers)
            for batch in read_ahead(batches, self._prefetch):
                yield batch.result()


make_eval_batches = EvalBatches


def read_ahead(items: Iterable[Any], size: int = 1) -> Iterator[Any]:
    """Yield `items`, each taken `size` items ahead.

    Around an iterator that puts batches on devices, one batch is transferred while the step on the
    one before is computed.
    """
    ahead: collections.deque = collections.deque()
    for item in items:
        ahead.append(item)
        if len(ahead) > size:
            yield ahead.popleft()
    yield from ahead


def check_sizes(**sizes: int) -> None:
    """Raise a ConfigError that names a size below 1."""
    for name, value in sizes.items():
        if value < 1:
            raise ConfigError(f"{name}: expected at least 1, found {value}")
