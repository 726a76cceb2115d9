"""The queue: which items are worked on together, when, and what their faults do to others."""

import threading
import time

import pytest

from sparsecap_jax.service.batching import BatchQueue


class Worker:
    """Squares numbers, waits at a gate, and notes its batches."""

    def __init__(self, **options):
        self.batches, self.gate = [], threading.Event()
        self.entered = threading.Semaphore(0)
        self.queue = BatchQueue(self, **{"max_batch": 4, "max_wait": 0.0, **options})

    def __call__(self, key, items):
        self.batches.append((key, items))
        self.entered.release()
        assert self.gate.wait(30)
        return [item**2 for item in items]

    def submit_behind_one(self, pairs):
        """Queue items while the worker is held by a first one."""
        first = self.queue.submit("first", 0)
        assert self.entered.acquire(timeout=30)
        futures = [self.queue.submit(key, item) for key, item in pairs]
        assert len(self.queue) == len(pairs)
        return first, futures


def test_items_that_wait_are_taken_together_by_key_and_age():
    worker = Worker()
    pairs = [("a", 1), ("b", 2), ("a", 3), ("a", 4), ("b", 5), ("a", 6), ("a", 7)]
    first, futures = worker.submit_behind_one(pairs)
    worker.gate.set()
    assert [future.result(30) for future in futures] == [1, 4, 9, 16, 25, 36, 49]
    assert first.result() == 0
    expected = [("first", [0]), ("a", [1, 3, 4, 6]), ("b", [2, 5]), ("a", [7])]
    assert worker.batches == expected
    worker.queue.close()
    assert not worker.queue.alive


def test_cancelled_items_are_never_run():
    worker = Worker()
    _, futures = worker.submit_behind_one([("a", 1), ("a", 2), ("b", 3)])
    assert futures[0].cancel() and futures[2].cancel()
    worker.gate.set()
    assert futures[1].result(30) == 4
    worker.queue.close()
    assert worker.batches == [("first", [0]), ("a", [2])]


def test_a_full_batch_waits_for_nothing():
    worker = Worker(max_wait=1000.0)
    worker.gate.set()
    futures = [worker.queue.submit("a", item) for item in range(4)]
    assert [future.result(30) for future in futures] == [0, 1, 4, 9]
    assert [len(items) for _, items in worker.batches] == [4]


def test_the_oldest_waits_as_long_as_allowed_where_others_are_expected():
    worker = Worker(max_wait=0.2)
    worker.gate.set()
    start = time.monotonic()
    assert worker.queue.submit("a", 3).result(30) == 9
    assert 0.2 <= time.monotonic() - start < 10
    alone = Worker(max_wait=1000.0, expected=lambda: False)
    alone.gate.set()
    assert alone.queue.submit("a", 3).result(30) == 9


def test_items_start_when_one_that_was_expected_will_not_come():
    expected = [True]
    worker = Worker(max_wait=1000.0, expected=lambda: expected[0])
    worker.gate.set()
    future = worker.queue.submit("a", 3)
    worker.queue.wake()
    with pytest.raises(TimeoutError):
        future.result(0.2)
    expected[0] = False
    worker.queue.wake()
    assert future.result(30) == 9


def test_one_faulty_item_fails_alone():
    def run(key, items):
        batches.append(list(items))
        if 0 in items:
            raise ZeroDivisionError("of the item 0")
        return [1 / item for item in items]

    batches = []
    queue = BatchQueue(run, max_batch=3, max_wait=1000.0)
    futures = [queue.submit("a", item) for item in (1, 0, 2)]
    assert [futures[0].result(30), futures[2].result(30)] == [1.0, 0.5]
    with pytest.raises(ZeroDivisionError, match="of the item 0"):
        futures[1].result(30)
    assert batches == [[1, 0, 2], [1], [0], [2]]
    assert queue.alive


def test_too_few_results_are_a_fault_and_end_nothing():
    queue = BatchQueue(lambda key, items: items[1:], max_batch=1, max_wait=0.0)
    with pytest.raises(ValueError, match=r"zip\(\)"):
        queue.submit("a", 1).result(30)
    assert queue.alive


def test_closing_works_on_what_waits_at_once():
    worker = Worker(max_wait=1000.0)
    futures = [worker.queue.submit(key, item) for key, item in (("a", 2), ("b", 3))]
    closing = threading.Thread(target=worker.queue.close)
    closing.start()
    worker.gate.set()
    assert [future.result(30) for future in futures] == [4, 9]
    closing.join(30)
    assert not worker.queue.alive
    with pytest.raises(RuntimeError, match="closed"):
        worker.queue.submit("a", 1)
