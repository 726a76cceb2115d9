"""Work on a request, from its body to its caption: admission, threads, batches, time."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sparsecap_jax.captioner import Captioner
from sparsecap_jax.captioning.batches import Caption
from sparsecap_jax.captioning.search import SearchOptions
from sparsecap_jax.data.features import RegionFeatures
from sparsecap_jax.machine import cores
from sparsecap_jax.service.batching import BatchQueue
from sparsecap_jax.service.limits import Limits, Refused
from sparsecap_jax.service.metrics import Metrics


@dataclasses.dataclass(frozen=True)
class _Key:
    """Properties that the images of a batch share.

    Samples depend on the place of an image in its batch, so that they are drawn alone.
    """

    search: SearchOptions
    attention: bool
    alone: object = None


@dataclasses.dataclass(frozen=True)
class Captioned:
    """An image's captions.

    Attributes:
        captions: all that its search found, best beams first.
        image: its regions.
        batch: number of images that were captioned together.
    """

    captions: list[Caption]
    image: RegionFeatures
    batch: int


class CaptionService:
    """A captioner behind threads that prepare images and one that captions them in batches.

    Args:
        captioner: the captioner.
        limits: bounds of requests, batches and time.
        pad_batches: whether batches are filled up to 1, 2, 4, ... images, by copies of the last,
            for a runtime that compiles for each size.
    """

    def __init__(self, captioner: Captioner, limits: Limits, *, pad_batches: bool = False):
        self.captioner, self.limits, self._pad = captioner, limits, pad_batches
        threads = limits.decoders or cores()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="photos")
        self._open = self._preparing = 0
        self.queue = BatchQueue(
            self._caption,
            max_batch=limits.max_batch,
            max_wait=limits.max_wait_ms / 1000,
            expected=lambda: self._preparing > 0,
        )
        self.metrics = Metrics(lambda: len(self.queue))

    def close(self) -> None:
        """Finish what is in work, and end the threads."""
        self._pool.shutdown(cancel_futures=True)
        self.queue.close()

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request as worked on while the block runs.

        Raises:
            Refused: `busy`.
        """
        if self._open >= self.limits.max_requests:
            raise Refused("busy", f"{self._open} requests are worked on; try again later")
        self._open += 1
        self.metrics.working.set(self._open)
        try:
            yield
        finally:
            self._open -= 1
            self.metrics.working.set(self._open)

    async def caption(
        self, prepare: Callable[[], RegionFeatures], search: SearchOptions, attention: bool
    ) -> Captioned:
        """Return the captions of an image.

        Args:
            prepare: returns its regions; runs in a thread.
            search: the search.
            attention: whether captions come with the weights of the regions for each word.

        Raises:
            Refused: by `prepare`, or `timeout`.
        """
        key = _Key(search, attention, object() if search.uses("seed") else None)
        try:
            async with asyncio.timeout(self.limits.seconds):
                image = await self._prepared(prepare)
                future = self.queue.submit(key, (image, time.monotonic()))
                return await asyncio.wrap_future(future)
        except TimeoutError:
            message = f"no caption within {self.limits.seconds:g} s; try again later"
            raise Refused("timeout", message) from None

    async def _prepared(self, prepare: Callable[[], RegionFeatures]) -> RegionFeatures:
        self._preparing += 1
        try:
            with self.metrics.stages.labels("prepare").time():
                image = await asyncio.get_running_loop().run_in_executor(self._pool, prepare)
        except BaseException:  # refused, or out of time: others need not wait for it
            self._preparing -= 1
            self.queue.wake()
            raise
        self._preparing -= 1
        return image

    def _caption(self, key: _Key, items: list[tuple[RegionFeatures, float]]) -> list[Captioned]:
        images = [image for image, _ in items]
        for _, submitted in items:
            self.metrics.stages.labels("queue").observe(time.monotonic() - submitted)
        self.metrics.batches.observe(len(images))
        size = 1 << (len(images) - 1).bit_length() if self._pad else len(images)
        rows = images + images[-1:] * (size - len(images))
        boxes: list[Any] | None = (
            [image.boxes for image in rows] if self.captioner.needs_boxes else None
        )
        with self.metrics.stages.labels("caption").time():
            captions: list[Any] = self.captioner.candidates(
                [image.features for image in rows],
                boxes,
                [image.fc for image in rows],
                attention=key.attention,
                **vars(key.search),
            )
        results = zip(captions[: len(images)], images, strict=True)
        return [Captioned(of_image, image, len(images)) for of_image, image in results]
