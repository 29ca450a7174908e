"""Who is served and who has to come back later: a bounded queue before a few workers."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from ..errors import CancelledError
from ..host.cancel import Cancel

__all__ = ["ClientGoneError", "Gate", "Place", "TooBusyError", "TooLateError"]

Result = TypeVar("Result")
_FORGET = 0.2
"""Weight of the newest request in the mean time of one."""
_LONGEST_WAIT = 600


class TooBusyError(Exception):
    """The queue is full. `retry_after`: seconds after which there should be room."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the service is busy: come back in {retry_after} s")
        self.retry_after = retry_after


class TooLateError(Exception):
    """The deadline of a request has passed."""

    def __init__(self, sentence: str = "the answer was not ready in time", *, clients: bool = False) -> None:
        """`clients`: whether it was the client's own, or the client that took too long."""
        super().__init__(sentence)
        self.clients = clients


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


class Place:
    """A request's place, from its admission to the end of its work."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.entered = time.perf_counter()
        self.queue_ms = 0.0
        """Time from admission until a worker took it."""

    async def work(
        self, call: Callable[[Cancel], Result], deadline: float, gone: Callable[[], asyncio.Future[None]]
    ) -> Result:
        """Call in a worker. The place is free again when the call has really ended, or will not begin any more.

        `deadline`: `time.perf_counter()` at which it is stopped within one tile. `gone`: makes a future that is done when
        the client is gone. Raises `TooLateError`, `ClientGoneError`, and what the call raises.
        """
        cancel, loop = Cancel(), asyncio.get_running_loop()

        def run() -> Result:
            started = time.perf_counter()
            self.queue_ms = 1e3 * (started - self.entered)
            result = call(cancel)
            self._gate.learn(time.perf_counter() - started)
            return result

        def leave(_: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._gate.leave)

        try:
            running = self._gate.workers.submit(run)
        except BaseException:
            self._gate.leave()
            raise
        running.add_done_callback(leave)
        working, watching = asyncio.wrap_future(running), gone()
        try:
            left = max(0.0, deadline - time.perf_counter())
            ends: set[asyncio.Future[Any]] = {working, watching}
            await asyncio.wait(ends, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            if watching.done():
                raise ClientGoneError
            raise TooLateError
        finally:
            cancel.set()  # without effect on a call that has ended
            working.cancel()  # a call that no worker has taken yet leaves the queue
            watching.cancel()


class Gate:
    """Admits a bounded number of requests. Only the event loop calls `enter` and `leave`."""

    def __init__(self, workers: int, queue: int) -> None:
        self._count, self._queue = workers, queue
        self.workers = ThreadPoolExecutor(workers, thread_name_prefix="rdsr-serve")
        self.admitted = 0
        """Requests that wait or are in work."""
        self.draining = False
        """Whether only requests that have begun are served."""
        self._seconds = 1.0
        """Mean time of one request in a worker."""

    @property
    def full(self) -> bool:
        """Whether the next request is one too many."""
        return self.admitted >= self._count + self._queue

    @property
    def waiting(self) -> int:
        """Requests that no worker has taken yet."""
        return max(0, self.admitted - self._count)

    def check(self) -> None:
        """Raise `TooBusyError` if `enter` would, and `CancelledError` in the end: before a body is read."""
        if self.draining:
            raise CancelledError("the service is ending")
        if self.full:
            raise TooBusyError(self.retry_after)

    def enter(self) -> Place:
        """Raises `TooBusyError`."""
        if self.full:
            raise TooBusyError(self.retry_after)
        self.admitted += 1
        return Place(self)

    def leave(self) -> None:
        self.admitted -= 1

    def learn(self, seconds: float) -> None:
        """A request was served, and took this long in a worker."""
        self._seconds += _FORGET * (seconds - self._seconds)

    @property
    def retry_after(self) -> int:
        """Whole seconds after which half of the queue should be worked off, at the rate of the last requests."""
        rate = self._count / max(1e-3, self._seconds)
        return min(_LONGEST_WAIT, max(1, math.ceil((self._count + self._queue / 2) / rate)))

    def close(self) -> None:
        self.workers.shutdown(wait=True, cancel_futures=True)
