"""Serving an application by uvicorn: headers in time, answers in flight finished before the end."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from sparsecap_jax import stopping
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.service.limits import Limits

_HEADER_BYTES = 16 * 1024
_SPARE_SECONDS = 5
_SPARE_CONNECTIONS = 8  # that are open for as long as it takes to turn them away


def run(
    app: Any, host: str, port: int, limits: Limits, report: Callable[[str], None] = print
) -> None:
    """Serve an application until SIGTERM or SIGINT, after which requests in flight are answered.

    Args:
        app: ASGI application.
        host: address to listen on.
        port: its port; 0 for any free one.
        limits: time for headers, bodies and answers; number of connections.
        report: takes one line, the address, once it is bound.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"cannot listen on {host} port {port}: {reason}") from error
    config = uvicorn.Config(
        app,
        http=_protocol(limits),
        ws="none",
        lifespan="on",
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        limit_concurrency=limits.max_connections + 1,  # the number from which uvicorn refuses
        timeout_graceful_shutdown=int(limits.upload_seconds + limits.seconds + _SPARE_SECONDS),
        h11_max_incomplete_event_size=_HEADER_BYTES,
    )
    name = f"[{host}]" if ":" in host else host
    with listener:
        report(f"listening on http://{name}:{listener.getsockname()[1]}")
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except (stopping.Stopped, KeyboardInterrupt):
            report("stopped")  # asked for, and done cleanly


def _protocol(limits: Limits) -> type[H11Protocol]:
    most = limits.max_connections + _SPARE_CONNECTIONS
    return type("Protocol", (_Punctual,), {"seconds": limits.upload_seconds, "most": most})


class _Punctual(H11Protocol):
    """HTTP of a client whose headers arrive in time; else its connection is closed.

    Uvicorn looks at the number of connections when the headers of a request are complete. Those
    beyond `most` are closed at once, so that clients that send nothing do not use up descriptors.
    """

    seconds, most = 10.0, 1000
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.close()
        self._watch()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._rest()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Start the clock where a request is awaited or begun, stop it where one is worked on."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._rest()
        elif self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(self.seconds, self._late)

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        self.transport.close()
