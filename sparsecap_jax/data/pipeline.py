"""Training batches of few fixed shapes: seeded, resumable, sharded, prepared in the background.

A training batch is a pure function of (seed, step): the order of epoch e depends on the seed and e
alone, and which captions an image shows in epoch e likewise. So the whole state of an iterator is
its step, whatever was prefetched, and process p of n builds rows `p * B/n` to `(p + 1) * B/n` of
the same global batches that one process alone would see.
"""

import copy
import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import flags

from sparsecap_jax import stopping
from sparsecap_jax.data.batches import (
    BatchMaker,
    Tokenizer,
    check_sizes,
    encode_captions,
    make_eval_batches,
)
from sparsecap_jax.data.features import FeatureStore, share_of
from sparsecap_jax.data.records import Record
from sparsecap_jax.errors import CheckpointError, ConfigError, DataError
from sparsecap_jax.types import Batch

__all__ = ["TrainData", "make_eval_batches", "make_train_iterator", "steps_per_epoch"]

_STATE_VERSION = 1
# Independent random streams of one epoch.
_ORDER, _CAPTIONS, _TOKENS = 0, 1, 2


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Number of training steps in one epoch; the incomplete last batch is dropped."""
    return num_images // batch_size


class TrainData(BatchMaker):
    """Training batches by step, a pure function of the arguments and the step.

    Each batch holds `batch_size` different images with `seq_per_img` captions each, sampled without
    replacement. An image with fewer captions repeats them under a False `token_mask`, so that the
    loss counts each caption once, as the reference's ragged batches do.

    Args:
        records: images of the split, with captions.
        store: their features.
        tokenizer: encodes every caption once, here.
        seq_per_img: captions per image S.
        max_seq_length: longest caption in tokens, BOS and EOS counted; longer ones are cut.
        token_buckets: allowed sizes of the token axis besides `max_seq_length`.
        group_batches: 0: batches in shuffled order. n: images of n consecutive batches are sorted
            by their number of regions, so that batches pad less, and these batches are shuffled.
            It reads the number of regions of every image at the start.
        seed: of order and captions, at least 0.
        sample_tokens: subword regularisation, `(text, generator) -> ids` of each chosen caption,
            which must draw from `generator` only.
        **options: those of `BatchMaker`; `batch_size` is required.

    Raises:
        ConfigError: a size out of range.
        DataError: no images, missing features (all at once), or an image without captions.
    """

    def __init__(
        self,
        records: Sequence[Record],
        store: FeatureStore,
        tokenizer: Tokenizer,
        *,
        seq_per_img: int = 5,
        max_seq_length: int = 18,
        token_buckets: Sequence[int] = (),
        group_batches: int = 0,
        seed: int = 0,
        sample_tokens: Callable[[str, np.random.Generator], Sequence[int]] | None = None,
        **options: Any,
    ):
        super().__init__(records, store, **options)
        check_sizes(seq_per_img=seq_per_img, max_seq_length=max_seq_length)
        if seed < 0 or group_batches < 0:
            raise ConfigError(f"seed, group_batches: at least 0, found {seed}, {group_batches}")
        self.steps_per_epoch = steps_per_epoch(len(records), self.batch_size)
        if not self.steps_per_epoch:
            raise ConfigError(f"batch_size: {self.batch_size} exceeds the {len(records)} images")
        digest = hashlib.sha256()
        for record in records:
            if not record.captions:
                raise DataError(f"image {record.image_id!r} has no captions to train on")
            digest.update(repr((record.image_id, record.captions)).encode())
        self._captions = encode_captions(records, tokenizer, max_seq_length)
        longest = self._captions.tokens.shape[1]
        self._lengths = sorted({t for t in token_buckets if t < longest} | {longest})
        self._seq_per_img = seq_per_img
        self._group_batches = group_batches
        self._seed = seed
        self._sample_tokens = sample_tokens
        self._texts = [caption for record in records for caption in record.captions]
        self._region_counts = (
            np.array([store.num_regions(i) for i in self._ids]) if group_batches else None
        )
        self._plans: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.fingerprint = {
            "seed": seed,
            "batch_size": self.batch_size,
            "seq_per_img": seq_per_img,
            "group_batches": group_batches,
            "images": len(records),
            "sha256": digest.hexdigest(),
        }

    def __getitem__(self, step: int) -> Batch:
        """Build this process' part of the batch of one step, counted from 0 over all epochs."""
        epoch, number = divmod(step, self.steps_per_epoch)
        order, caption_order = self._plan(epoch)
        images = order[number * self.batch_size :][: self.batch_size]
        regions = self._regions(images)
        rows, counting = self._captions.choose(images, caption_order, self._seq_per_img)
        longest = int(self._captions.lengths[rows].max())
        rows, counting = rows[self._local], counting[self._local]
        if self._sample_tokens is None:
            length = next(t for t in self._lengths if t >= longest)
            tokens, mask = self._captions.gather(rows, counting, length)
        else:
            tokens, mask = self._resample(rows, counting, epoch)
        index = images[self._local].astype(np.int32)
        return Batch(regions=regions, tokens=tokens, token_mask=mask, index=index)

    def share(self, num_workers: int) -> "TrainData":
        """Return the same batches for one of `num_workers` processes, with a share of the cache."""
        data = copy.copy(self)
        data._store = share_of(self._store, num_workers)
        return data

    def _plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return image numbers in an epoch's order, and caption rows shuffled within images."""
        plans = self._plans
        if epoch not in plans:
            order = self._image_order(np.random.default_rng([self._seed, epoch, _ORDER]))
            captions = self._captions.shuffle(np.random.default_rng([self._seed, epoch, _CAPTIONS]))
            # Prefetching threads may be on both sides of an epoch's end.
            near = {e: plan for e, plan in plans.items() if abs(e - epoch) == 1}
            plans = self._plans = {**near, epoch: (order, captions)}
        return plans[epoch]

    def _image_order(self, rng: np.random.Generator) -> np.ndarray:
        order = rng.permutation(len(self._ids))[: self.steps_per_epoch * self.batch_size]
        if self._region_counts is not None:
            window = self._group_batches * self.batch_size
            for start in range(0, len(order), window):
                part = order[start : start + window]
                part = part[np.argsort(self._region_counts[part], kind="stable")]
                batches = part.reshape(-1, self.batch_size)
                order[start : start + window] = rng.permutation(batches).ravel()
        return order

    def _resample(self, rows, counting, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw new tokens for the chosen captions; the length axis is always the longest."""
        length, sample = self._lengths[-1], self._sample_tokens
        assert sample is not None
        tokens = np.full((*rows.shape, length), self._captions.pad_id, np.int32)
        lengths = np.zeros(rows.shape, np.int32)
        for place, row in np.ndenumerate(rows):
            rng = np.random.default_rng([self._seed, epoch, _TOKENS, int(row)])
            ids = sample(self._texts[row], rng)[:length]
            tokens[place][: len(ids)] = ids
            lengths[place] = len(ids)
        return tokens, (np.arange(length) < lengths[..., None]) & counting[..., None]


class TrainIterator(Iterator[Batch]):
    """Iterator over batches by step, endless or of `num_epochs`, prefetched by Grain.

    `get_state()` after n batches is a small dict of JSON values; `set_state` of it, in an iterator
    over the same data, continues with batch n exactly. The state does not depend on the number of
    processes, threads or workers: n processes can continue what one began.

    `step` is the number of batches consumed since the first epoch began.

    Args:
        data: the batches by step.
        num_epochs: epochs until StopIteration; None never stops.
        prefetch: batches prepared ahead, at most; 0 prepares each when it is asked for.
        num_threads: threads that prepare them; more than one helps slow disks, not a memory cache.
        num_workers: processes that prepare them instead, `prefetch` each; they help where Python
            is the bottleneck, and start in seconds. Each has its share of a memory cache.
    """

    def __init__(
        self,
        data: TrainData,
        *,
        num_epochs: int | None = None,
        prefetch: int = 2,
        num_threads: int = 1,
        num_workers: int = 0,
    ):
        self.data = data
        self.steps_per_epoch = data.steps_per_epoch
        epochs = sys.maxsize // data.steps_per_epoch if num_epochs is None else num_epochs
        self._length = epochs * data.steps_per_epoch
        self._prefetch, self._threads, self._workers = prefetch, num_threads, num_workers
        self._iterator: Any = None
        self.step = 0

    def __next__(self) -> Batch:
        """Return the next batch; a DataError from reading it is raised here."""
        if self._iterator is None:
            self._iterator = self._open()
        batch = next(self._iterator)
        self.step += 1
        return batch

    def get_state(self, step: int | None = None) -> dict[str, Any]:
        """Return the position (`step`, for callers who read ahead) and the data's fingerprint."""
        step = self.step if step is None else step
        return {"version": _STATE_VERSION, "step": step, "data": dict(self.data.fingerprint)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`; CheckpointError where it is malformed or of other data."""
        try:
            version, step, data = state["version"], state["step"], state["data"]
            differing = sorted(k for k, v in self.data.fingerprint.items() if data.get(k) != v)
        except (KeyError, TypeError, AttributeError):
            raise CheckpointError(f"data iterator: not a saved state: {state!r:.80}") from None
        if version != _STATE_VERSION or type(step) is not int or not 0 <= step <= self._length:
            raise CheckpointError(f"data iterator: version {version}, step {step} cannot be used")
        if differing:
            changes = "; ".join(
                f"{k} was {data.get(k)}, is {self.data.fingerprint[k]}" for k in differing
            )
            raise CheckpointError(f"data iterator: the saved position is in other data: {changes}")
        self.close()
        self.step = step

    def close(self) -> None:
        """Stop preparing batches; the next call of `next` starts again at the same step."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def _open(self) -> Any:
        """Prepare the batches from the current step on."""
        import grain  # costs seconds to import

        data, threads, ahead = self.data, min(self._threads, self._prefetch), self._prefetch
        if self._workers:
            data, threads, ahead = self.data.share(self._workers), 0, 0
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
        steps = grain.MapDataset.range(self.step, self._length)
        dataset = steps.map(data.__getitem__).to_iter_dataset(options)
        if not self._workers:
            return iter(dataset)
        if not flags.FLAGS.is_parsed():  # Grain's workers read flags of theirs
            flags.FLAGS.mark_as_parsed()
        workers = grain.MultiprocessingOptions(self._workers, max(1, self._prefetch))
        return iter(dataset.mp_prefetch(workers, stopping.follow_parent))


def make_train_iterator(
    records: Sequence[Record],
    store: FeatureStore,
    tokenizer: Tokenizer,
    *,
    num_epochs: int | None = None,
    prefetch: int = 2,
    num_threads: int = 1,
    num_workers: int = 0,
    **options: Any,
) -> TrainIterator:
    """Make a `TrainIterator` of training batches; `options` are those of `TrainData`."""
    reading = {"prefetch": prefetch, "num_threads": num_threads, "num_workers": num_workers}
    data = TrainData(records, store, tokenizer, **options)
    return TrainIterator(data, num_epochs=num_epochs, **reading)
