"""What the routes share: models, queue, metrics, progress, and one way to do a request's work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Message, Scope

from ..errors import PixelLimitError
from ..host.cancel import Cancel
from ..host.cpu import cpu_name
from .gate import Gate, Place, TooBusyError, TooLateError
from .logs import logger
from .metrics import STAGES, Metrics
from .models import Models
from .options import SLOWEST, ServiceOptions
from .progress import ProgressBoard

__all__ = ["BodyTooLargeError", "Service", "UnknownModelError"]

Result = TypeVar("Result")
Done = Callable[[int, int], None]


class BodyTooLargeError(Exception):
    """The body of a request is larger than the service takes."""


class UnknownModelError(Exception):
    """No model of the service has this name."""


class Service:
    """The state of one service. Its methods are for the event loop; work happens in the gate's threads."""

    def __init__(self, options: ServiceOptions) -> None:
        """Open the bundles. Raises what `Models` raises."""
        self.options = options
        self.models = Models(options)
        self.gate = Gate(options.workers, options.queue)
        self.metrics = Metrics(self.gate)
        self.board = ProgressBoard()
        self._bodies = self._answers = 0
        """Bytes of all clients together."""
        self.ready = False
        """Whether the first picture has gone through the default model, and the service is not ending."""
        self.failure: Exception | None = None
        """Why the first picture did not."""

    async def warm_up(self) -> None:
        """Upscale a first picture; then the service is ready."""
        started = time.perf_counter()
        try:
            await asyncio.get_running_loop().run_in_executor(self.gate.workers, self.models.warm_up)
        except Exception as error:  # even a bug must not leave a service that never becomes ready
            logger.error("the first picture cannot be upscaled", exc_info=error)
            self.failure = error
            return
        if self.gate.draining:
            return
        self.ready = True
        facts = {"cpu": cpu_name(), "models": list(self.models.names), "seconds": round(time.perf_counter() - started, 3)}
        logger.info("ready", extra={"facts": facts})

    def model(self, name: str | None) -> str:
        """The name of a model; None stands for the default one. Raises `UnknownModelError`."""
        if name is None:
            return self.models.names[0]
        if name not in self.models.names:
            raise UnknownModelError(f"no model is called {name[:100]!r}; there are {', '.join(self.models.names)}")
        return name

    async def body(self, request: Request, deadline: float) -> tuple[bytes, Request]:
        """The body of a request, and the request to go on with.

        Raises `TooBusyError`, `TooLateError` for a client that takes too long, `BodyTooLargeError`, and starlette's
        `ClientDisconnect`.
        """
        self.gate.check()  # before it is read in vain
        most, read = self.options.max_bytes, 0
        too_large = BodyTooLargeError(f"the body has more than {most} bytes")
        declared = int(request.headers.get("content-length", 0))  # the server has checked that it is a number
        if declared > most:
            raise too_large
        if self._bodies + declared > self.options.most_held or self._answers > self.options.most_held:
            raise TooBusyError(self.gate.retry_after)
        slack = self.options.patience

        async def receive() -> Message:
            nonlocal read, slack
            started = time.perf_counter()
            async with asyncio.timeout(slack):
                message = await request.receive()
            count = len(message.get("body", b""))
            slack = min(self.options.patience, slack - (time.perf_counter() - started) + count / SLOWEST)
            read += count
            if read > most:
                raise too_large
            self._hold(request, "body", count)
            if self._bodies > self.options.most_held:
                raise TooBusyError(self.gate.retry_after)
            return message

        bounded = Request(request.scope, receive)
        try:
            async with asyncio.timeout(max(0.0, deadline - time.perf_counter())):
                return await bounded.body(), bounded
        except TimeoutError:
            raise TooLateError("the body did not arrive in time", clients=True) from None

    def served(
        self,
        request: Request,
        model: str,
        milliseconds: tuple[float, float, float, float],
        pixels: tuple[int, int],
        answer: int,
        **facts: Any,
    ) -> dict[str, str]:
        """Note a request that was served, in metrics, log and memory. Returns the headers of its answer.

        `milliseconds`: of each of `STAGES`; `pixels`: of all pictures, read and written; `answer`: its bytes; `facts`:
        more for the log.
        """
        times = dict(zip(STAGES, milliseconds, strict=True))
        self._hold_answer(request, answer)
        self.metrics.served(model, times, *pixels)
        stages = {f"{stage}_ms": round(taken, 1) for stage, taken in times.items()}
        request.scope["state"]["facts"] |= {"model": model, **facts, **stages}
        return {"Server-Timing": ", ".join(f"{stage};dur={taken:.1f}" for stage, taken in times.items())}

    def check_result(self, count: int) -> None:
        """Raise `PixelLimitError` if the pixels of a result have more bytes than may be held."""
        if count > self.options.most_held:
            raise PixelLimitError(f"the result would have {count} bytes of pixels, more than {self.options.most_held}")

    def _hold_answer(self, request: Request, count: int) -> None:
        """Note that an answer is in memory until it is sent. The body that it answers is not needed any more."""
        self.release(request.scope)
        self._hold(request, "answer", count)

    def _hold(self, request: Request, kind: str, count: int) -> None:
        held = request.scope["state"]["held"]
        held[kind] = held.get(kind, 0) + count
        self._count(kind, count)

    def release(self, scope: Scope, count: int | None = None) -> None:
        """Note that bytes of an answer were sent; None: that the request holds nothing any more."""
        held = scope["state"]["held"]
        for kind, bytes_held in list(held.items()):
            gone = bytes_held if count is None else min(count, bytes_held)
            held[kind] -= gone
            self._count(kind, -gone)

    def _count(self, kind: str, change: int) -> None:
        if kind == "body":
            self._bodies += change
        else:
            self._answers += change
        self.metrics.held.set(self._bodies + self._answers)

    def deadline(self, request: Request, asked: float | None) -> float:
        """`time.perf_counter()` until which the answer must begin: the service's deadline, or an earlier one."""
        seconds = self.options.deadline if asked is None else min(asked, self.options.deadline)
        begun: float = request.scope["state"]["begun"]
        return begun + seconds

    async def work(self, request: Request, deadline: float, call: Callable[[Cancel, Done], Result]) -> tuple[Result, Place]:
        """Call in a worker, with a token and a progress callback.

        Raises `TooBusyError`, `TooLateError`, `ClientGoneError`, and what the call raises.
        """
        place = self.gate.enter()
        with self.board.following(request.scope["state"]["id"]) as note:
            try:
                result = await place.work(lambda cancel: call(cancel, note), deadline, lambda: _gone(request))
            except TooLateError as error:
                error.clients = deadline < self.deadline(request, None)
                raise
        return result, place

    def drain(self) -> None:
        """Serve what was admitted, and nothing more."""
        self.ready = False
        self.gate.draining = True
        self.board.close()

    def close(self) -> None:
        """Wait for calls that were admitted, then release the engines."""
        self.gate.close()
        self.models.close()


def _gone(request: Request) -> asyncio.Future[None]:
    """Done when the client has closed the connection."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    return asyncio.ensure_future(watch())
