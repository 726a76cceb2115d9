"""Prometheus metrics of a service, and the middleware that counts its requests."""

import time
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Metrics of one service, in a registry of their own.

    Args:
        waiting: returns the number of images that wait for a batch.
    """

    def __init__(self, waiting: Callable[[], int]):
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory, time of the processor, open files
        self.requests = Counter(
            "sparsecap_requests",
            "Answers by page and status.",
            ["page", "status"],
            registry=registry,
        )
        self.refused = Counter(
            "sparsecap_refused", "Answers that are no caption.", ["reason"], registry=registry
        )
        self.seconds = Histogram(
            "sparsecap_request_seconds",
            "Time from the headers of a request to its answer.",
            ["page"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.stages = Histogram(
            "sparsecap_stage_seconds",
            "Time of a part: upload, prepare (photo to features), queue, caption (of a batch).",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.batches = Histogram(
            "sparsecap_batch_images", "Images of a batch.", buckets=_IMAGES, registry=registry
        )
        self.working = Gauge(
            "sparsecap_requests_working", "Requests for captions worked on.", registry=registry
        )
        queue = Gauge("sparsecap_queue_images", "Images that wait for a batch.", registry=registry)
        queue.set_function(waiting)


class Measured:
    """ASGI middleware that counts and times requests, and keeps browsers from guessing types.

    Args:
        app: what it wraps.
        metrics: where requests are counted.
        pages: paths that are counted by name; all others are one page, "site".
    """

    def __init__(self, app: Any, metrics: Metrics, pages: frozenset[str]):
        self._app, self._metrics, self._pages = app, metrics, pages

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on; see the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        page = scope["path"] if scope["path"] in self._pages else "site"
        start, status = time.monotonic(), 500

        async def noting(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), (b"x-content-type-options", b"nosniff")]
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            self._metrics.requests.labels(page, status).inc()
            self._metrics.seconds.labels(page).observe(time.monotonic() - start)
