"""Iterator over training batches: prefetched in threads or processes, resumed by its step."""

import collections
import sys
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from absl import flags

from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.types import Batch

_STATE_VERSION = 1


@runtime_checkable
class StepData(Protocol):
    """Batches that are a function of their step, counted from 0 over all epochs.

    `share(n)` returns the same for one of n processes.
    """

    steps_per_epoch: int
    fingerprint: dict[str, Any]

    def __getitem__(self, step: int) -> Batch: ...
    def share(self, num_workers: int) -> "StepData": ...  # noqa: D102


class TrainIterator(Iterator[Batch]):
    """Iterator over batches by step, endless or of `num_epochs`, prefetched by Grain.

    `get_state()` after n batches is a small dict of JSON values; `set_state` of it, in an iterator
    over the same data, continues with batch n exactly. The state does not depend on the number of
    processes, threads or workers: n processes can continue what one began.

    Args:
        data: the batches, `pipeline.TrainData`.
        num_epochs: epochs until StopIteration; None never stops.
        prefetch: batches prepared ahead, at most; 0 prepares each when it is asked for.
        num_threads: threads that prepare them; more than one helps slow disks, not a memory cache.
        num_workers: processes that prepare them instead, `prefetch` each; they help where Python
            is the bottleneck, and start in seconds. Each has its share of a memory cache.
    """

    def __init__(
        self,
        data: StepData,
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
        self._iterator: Iterator[Batch] | None = None
        self._step = 0

    @property
    def step(self) -> int:
        """Number of batches consumed since the first epoch began."""
        return self._step

    def __next__(self) -> Batch:
        """Return the next batch; a DataError from reading it is raised here."""
        if self._iterator is None:
            self._iterator = self._open()
        batch = next(self._iterator)
        self._step += 1
        return batch

    def get_state(self, step: int | None = None) -> dict[str, Any]:
        """Return the position (`step`, for callers who read ahead) and the data's fingerprint."""
        step = self._step if step is None else step
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
        self._step = step

    def close(self) -> None:
        """Stop preparing batches; the next call of `next` starts again at the same step."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def _open(self) -> Iterator[Batch]:
        """Prepare the batches from the current step on."""
        import grain  # costs seconds to import

        data, threads, ahead = self.data, min(self._threads, self._prefetch), self._prefetch
        if self._workers:
            data, threads, ahead = self.data.share(self._workers), 0, 0
        steps: Any = _Steps(data, self._step, self._length - self._step)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
        dataset = grain.MapDataset.source(steps).to_iter_dataset(options)
        if not self._workers:
            return iter(dataset)
        if not flags.FLAGS.is_parsed():  # Grain's workers read flags of theirs
            flags.FLAGS.mark_as_parsed()
        workers = grain.MultiprocessingOptions(self._workers, max(1, self._prefetch))
        return iter(dataset.mp_prefetch(workers))


class _Steps:
    """`StepData` from one step on, with a length: the form of a Grain source."""

    def __init__(self, data: StepData, first: int, length: int):
        self._data, self._first, self._length = data, first, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, step: int) -> Batch:
        return self._data[self._first + step]


def read_ahead(items: Iterator[Any], size: int = 1) -> Iterator[Any]:
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
