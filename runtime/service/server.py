"""Run the application on uvicorn: one process, a socket of our own, limits for slow clients, an end that waits."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import sys
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import OptionError, RdsrError
from .app import make_app
from .logs import log_as_json, logger
from .metrics import Metrics
from .options import PART, SLOWEST, ServiceOptions
from .service import Service

__all__ = ["serve"]

_BACKLOG = 2048
_SWITCH_SECONDS = 0.0005
"""How long a thread keeps the interpreter while others wait for it. With Python's 5 ms the engine's thread waits too often
for the event loop: four callers get 90 % of the library's throughput instead of 94 %."""
_PIECE = 2**15
"""Bytes that are read from a connection at a time."""


class _Server(uvicorn.Server):
    """Says where it listens, and tells the service when it begins to end."""

    service: Service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            logger.info("listening", extra={"facts": {"address": f"http://{shown}:{port}", "pid": os.getpid()}})

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.drain()
        logger.info("ending", extra={"facts": {"admitted": self.service.gate.admitted}})
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.should_exit = True  # uvicorn would raise the signal again in the end, as if it were a second one


def _protocol(patience: float, most: int, metrics: Metrics) -> type[H11Protocol]:
    """HTTP/1.1 that cuts clients which send no complete headers in `patience` seconds, or fall as far behind in taking.

    Of more than `most` connections, the one that has been idle longest is closed; if all are busy, the new one.
    """

    class Patient(H11Protocol):
        _asking: asyncio.TimerHandle | None = None
        """Runs while the client owes headers."""
        _taking: asyncio.TimerHandle | None = None
        """Runs while the client has to take the next part of an answer."""
        _rest: asyncio.TimerHandle | None = None
        """Runs while the client has to take the last part of one."""

        _slack = patience
        """Seconds that the client may still fall behind."""
        _paused = 0.0
        _idle_since = 0.0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > most:
                idle = [each for each in self.connections if isinstance(each, Patient) and each.is_idle and each is not self]
                min(idle, key=lambda each: each._idle_since, default=self).cut()
            # One large piece of a body in tiny chunks would hold up everyone.
            transport.max_size = _PIECE  # type: ignore[attr-defined]
            self._ask()

        def data_received(self, data: bytes) -> None:
            _stop(self._rest)
            if self._answering():  # what comes too early is not read, so that the end of the connection is seen
                self.cycle.keep_alive = False
                return
            super().data_received(data)
            if self._answering() and self.conn.trailing_data[0]:
                self.cycle.keep_alive = False
                self.flow.resume_reading()

        def _answering(self) -> bool:
            """Whether a whole request has come, and its answer has not gone."""
            return self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete

        def on_response_complete(self) -> None:
            if self.transport.get_write_buffer_size():
                self._rest = self.loop.call_later(patience, self._end)
            self._ask()  # before the next request begins
            super().on_response_complete()

        @property
        def is_idle(self) -> bool:
            """Whether no request has begun."""
            return self.cycle is None or self.cycle.response_complete

        def cut(self) -> None:
            """End the connection, whatever the client does."""
            metrics.dropped.inc()
            self.transport.abort()

        def _ask(self) -> None:
            self._idle_since = self.loop.time()
            _stop(self._asking)
            self._asking = self.loop.call_later(patience, self._has_asked)

        def _has_asked(self) -> None:
            if self.is_idle:
                self._end()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._paused = self.loop.time()
            _stop(self._taking)
            self._taking = self.loop.call_later(self._slack + PART / SLOWEST, self.cut)

        def resume_writing(self) -> None:
            super().resume_writing()
            _stop(self._taking)
            behind = self.loop.time() - self._paused - PART / SLOWEST
            self._slack = max(0.0, min(patience, self._slack - behind))

        def _end(self) -> None:
            if self.transport.get_write_buffer_size():  # `close` would wait until it is taken
                self.cut()
            else:
                self.transport.close()

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self._asking, self._taking, self._rest):
                _stop(timer)
            super().connection_lost(exc)

    return Patient


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def _socket(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `OptionError` if there can be none."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        # asyncio would do this to sockets of its own. Without it, answers in two small parts wait 40 ms for each other.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except (OSError, OverflowError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise OptionError(f"cannot listen on {host}:{port}: {reason}") from error


def serve(options: ServiceOptions, host: str, port: int) -> None:
    """Serve until SIGTERM or Ctrl-C, then answer what was admitted and end. `port` 0: any that is free; the log says which.

    Raises `OptionError`, what opening bundles raises, and the error of the first picture if it cannot be upscaled.
    """
    listening = _socket(host, port)
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        service = Service(options)
        settings: dict[str, Any] = {
            "http": _protocol(options.patience, options.connections, service.metrics),
            "loop": "asyncio",  # uvloop, which others may have installed, reads any amount at a time
            "ws": "none",
            "lifespan": "on",
            "log_config": None,
            "access_log": False,
            "server_header": False,
            "timeout_graceful_shutdown": math.ceil(options.deadline + options.patience),
        }
        log_as_json()

        def give_up() -> None:
            server.should_exit = True

        server = _Server(uvicorn.Config(make_app(service, on_failure=give_up), **settings))
        server.service = service
        server.run(sockets=[listening])
    finally:
        listening.close()
    if service.failure is not None:
        raise service.failure
    if not server.started:
        raise RdsrError("the service could not be started: see the log")
