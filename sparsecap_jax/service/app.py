"""The ASGI application: pages, answers, and one form for everything that is refused."""

import asyncio
import contextlib
import functools
import mimetypes
import pathlib
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from sparsecap_jax.captioner import Captioner
from sparsecap_jax.captioning.batches import best_caption, finite
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.evaluation.pages import assemble
from sparsecap_jax.service.captions import Captioned, CaptionService
from sparsecap_jax.service.inputs import Extras, read_features, read_options, read_photo
from sparsecap_jax.service.limits import REASONS, Limits, Refused
from sparsecap_jax.service.metrics import Measured
from sparsecap_jax.service.openapi import CAPTION, DESCRIPTION, HEALTH, METRICS, document

_REASON_OF_STATUS = {404: "not_found", 405: "wrong_method"}


def make_app(
    captioner: Captioner,
    limits: Limits | None = None,
    *,
    site: pathlib.Path | None = None,
    pad_batches: bool = False,
) -> Starlette:
    """Return the application of a captioner; `app.state.service` is its `CaptionService`.

    Args:
        captioner: the captioner.
        limits: its limits; by default those of `Limits`.
        site: folder of static files whose `index.html` is the front page; by default a form.
        pad_batches: see `CaptionService`.
    """
    service = CaptionService(captioner, limits or Limits(), pad_batches=pad_batches)
    pages = _Pages(service)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    routes: list[BaseRoute] = [
        Route(CAPTION, pages.caption, methods=["POST"]),
        Route(HEALTH, pages.health),
        Route(METRICS, pages.metrics),
        Route(DESCRIPTION, pages.description),
    ]
    if site:
        mimetypes.add_type("application/wasm", ".wasm")  # browsers compile nothing else on the fly
        mimetypes.add_type("text/javascript", ".mjs")
        routes.append(Mount("/", StaticFiles(directory=site, html=True)))
    else:
        routes.append(Route("/", pages.front))
    named = frozenset((CAPTION, HEALTH, METRICS, DESCRIPTION))
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[Middleware(Measured, metrics=service.metrics, pages=named)],
        exception_handlers={
            Refused: pages.refused,
            HTTPException: pages.http_error,
            Exception: pages.fault,
        },
    )
    app.router.redirect_slashes = False
    app.state.service = service
    return app


class _Pages:
    """The answers of each page of a service."""

    def __init__(self, service: CaptionService):
        self.service = service
        captioner = service.captioner
        try:
            self._takes_photos = bool(captioner.extractor)
        except ConfigError:
            self._takes_photos = False
        parts = captioner.feature_size, captioner.needs_boxes, self._takes_photos
        self._description = document(service.limits, *parts)

    async def caption(self, request: Request) -> Response:
        """Caption the photo or the features of a body."""
        service, limits = self.service, self.service.limits
        with service.admitted():
            read, defaults = self._reader(request)
            query = request.query_params.multi_items()
            options, extras = read_options(query, defaults, service.captioner, limits)
            with service.metrics.stages.labels("upload").time():
                body = await read_body(request, limits)
            start = time.monotonic()
            prepare = functools.partial(read, body, service.captioner, limits)
            captioned = await service.caption(prepare, options, extras.attention)
            answer = answer_of(captioned, extras)
            return JSONResponse(answer | {"seconds": round(time.monotonic() - start, 4)})

    def _reader(self, request: Request) -> tuple[Any, dict[str, Any]]:
        """Return the function that reads the body, by its type, and the default search."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "application/json":
            return read_features, {}
        if kind.startswith("image/") or kind == "application/octet-stream":
            if self._takes_photos:
                return read_photo, self.service.captioner.search
            raise Refused("unknown_type", "the model takes features alone: application/json")
        problem = f"Content-Type is {kind!r:.80}" if kind else "no Content-Type"
        expected = "a file's content as image/..., or application/json"
        raise Refused("unknown_type", f"{problem}; expected {expected}")

    async def health(self, request: Request) -> Response:
        """Say whether the service can caption."""
        if not self.service.queue.alive:
            raise Refused("fault", "the thread that captions has ended")
        return JSONResponse({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        """Return the metrics."""
        text = generate_latest(self.service.metrics.registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    async def description(self, request: Request) -> Response:
        """Return the OpenAPI description."""
        return JSONResponse(self._description)

    async def front(self, request: Request) -> Response:
        """Return the page with a form."""
        return HTMLResponse(_front_page())

    async def refused(self, request: Request, error: Exception) -> Response:
        """Return the answer of a `Refused`."""
        assert isinstance(error, Refused)
        self.service.metrics.refused.labels(error.reason).inc()
        headers = {"retry-after": "1"} if error.status in (429, 503) else {}
        if error.status == 408:  # nobody waits for the rest
            headers["connection"] = "close"
        content = {"reason": error.reason, "message": str(error)}
        return JSONResponse(content, error.status, headers)

    async def http_error(self, request: Request, error: Exception) -> Response:
        """Return the answer of an error of Starlette's: no such page, no such method.

        What may not be read (a file of the site) is not there for the client.
        """
        assert isinstance(error, HTTPException)
        reason = _REASON_OF_STATUS.get(error.status_code, "not_found")
        self.service.metrics.refused.labels(reason).inc()
        content = {"reason": reason, "message": REASONS[reason][1]}
        return JSONResponse(content, REASONS[reason][0], error.headers)

    async def fault(self, request: Request, error: Exception) -> Response:
        """Return the answer of an error that nobody foresaw; the server logs it."""
        self.service.metrics.refused.labels("fault").inc()
        content = {"reason": "fault", "message": REASONS["fault"][1]}
        # `Measured`, which sets this header elsewhere, does not see this answer.
        return JSONResponse(content, 500, {"x-content-type-options": "nosniff"})


async def read_body(request: Request, limits: Limits) -> bytes:
    """Return the body of a request, of at most `max_bytes`, if it arrives in time.

    Raises:
        Refused: `too_many_bytes`, `slow_upload` or `incomplete_body`.
    """
    message = f"the body is larger than {limits.max_bytes} bytes"
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limits.max_bytes:
        raise Refused("too_many_bytes", message)
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.upload_seconds):
            async for part in request.stream():
                size += len(part)
                if size > limits.max_bytes:
                    raise Refused("too_many_bytes", message)
                parts.append(part)
    except TimeoutError:
        message = f"the body did not arrive within {limits.upload_seconds:g} s"
        raise Refused("slow_upload", message) from None
    except ClientDisconnect:
        raise Refused("incomplete_body", "the connection ended before the body") from None
    return b"".join(parts)


def answer_of(captioned: Captioned, extras: Extras) -> dict[str, Any]:
    """Return the answer of an image's captions, as JSON values, all but `seconds`."""
    best = best_caption(captioned.captions)

    def scored(caption: Any) -> dict[str, Any]:
        scores = {"log_prob": finite(caption.log_prob), "score": finite(caption.score)}
        return {"caption": caption.text, **scores}

    answer = {**scored(best), "words": best.text.split(), "batch": captioned.batch}
    if extras.candidates:
        answer["candidates"] = [scored(caption) for caption in captioned.captions]
    if extras.attention:
        weights = np.nan_to_num(np.asarray(best.attention), posinf=0, neginf=0)
        answer["attention"] = np.round(weights.astype(np.float64), 5).tolist()
        boxes = captioned.image.boxes
        answer["boxes"] = None if boxes is None else boxes.astype(np.float64).round(5).tolist()
    return answer


@functools.cache
def _front_page() -> str:
    return "".join(
        assemble(
            "service.html",
            styles=["page.css", "service.css"],
            scripts=["service.js"],
            images="data: blob:",
            connect="'self'",
        )
    )
