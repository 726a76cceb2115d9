"""Requests of several threads, worked on in batches by one thread."""

import dataclasses
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Any


@dataclasses.dataclass(frozen=True)
class _Job:
    key: Hashable
    item: Any
    future: Future
    arrived: float


class BatchQueue:
    """A queue whose one worker takes items of equal keys together, oldest first.

    A batch starts when it is full, when its oldest item has waited for `max_wait`, or as soon as
    no further item is expected; items that arrive while a batch is worked on form the next one.

    Args:
        run: takes a key and a batch of items, and returns a result for each. Where it raises, each
            item of the batch is tried alone, so that an item never fails for the sake of another.
        max_batch: most items of a batch.
        max_wait: seconds.
        expected: whether further items are on their way to the queue.
    """

    def __init__(
        self,
        run: Callable[[Any, list[Any]], Sequence[Any]],
        *,
        max_batch: int,
        max_wait: float,
        expected: Callable[[], bool] = lambda: True,
    ):
        self._run, self._expected = run, expected
        self._max_batch, self._max_wait = max_batch, max_wait
        self._jobs: list[_Job] = []
        self._changed = threading.Condition()
        self._closed = False
        self._worker = threading.Thread(target=self._work, name="captions", daemon=True)
        self._worker.start()

    def __len__(self) -> int:
        """Number of items that wait."""
        return len(self._jobs)

    @property
    def alive(self) -> bool:
        """Whether the worker runs."""
        return self._worker.is_alive()

    def submit(self, key: Hashable, item: Any) -> Future:
        """Return the future result of an item; one that is cancelled in time is never run.

        Raises:
            RuntimeError: the queue is closed.
        """
        job = _Job(key, item, Future(), time.monotonic())
        with self._changed:
            if self._closed:
                raise RuntimeError("the queue is closed")
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def wake(self) -> None:
        """Look anew whether further items are expected; for when one of them will not come."""
        with self._changed:
            self._changed.notify()

    def close(self) -> None:
        """Work on what waits, then end the worker."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._worker.join()

    def _work(self) -> None:
        while jobs := self._next():
            self._finish(jobs)

    def _next(self) -> list[_Job]:
        """Wait for the next batch; an empty one ends the worker."""
        with self._changed:
            while True:
                self._jobs = [job for job in self._jobs if not job.future.cancelled()]
                wait = None
                if self._jobs:
                    first = self._jobs[0]
                    same = [job for job in self._jobs if job.key == first.key][: self._max_batch]
                    wait = first.arrived + self._max_wait - time.monotonic()
                    full = len(same) == self._max_batch
                    if full or wait <= 0 or self._closed or not self._expected():
                        return self._taken(same)
                elif self._closed:
                    return []
                self._changed.wait(wait)

    def _taken(self, jobs: list[_Job]) -> list[_Job]:
        taken = {id(job) for job in jobs}
        self._jobs = [job for job in self._jobs if id(job) not in taken]
        return jobs

    def _finish(self, jobs: list[_Job]) -> None:
        jobs = [job for job in jobs if job.future.set_running_or_notify_cancel()]
        try:
            values = self._run(jobs[0].key, [job.item for job in jobs]) if jobs else []
            results = list(zip(jobs, values, strict=True))
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
            else:
                for job in jobs:
                    self._alone(job)
            return
        for job, result in results:
            job.future.set_result(result)

    def _alone(self, job: _Job) -> None:
        try:
            job.future.set_result(self._run(job.key, [job.item])[0])
        except Exception as error:
            job.future.set_exception(error)
