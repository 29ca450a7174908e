"""Calls in the background: futures, results in order, asyncio, and closing them all."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Generic, TypeVar

from ..arguments import callback, instance
from ..errors import EngineError, OptionError
from .cancel import Cancel
from .engine_thread import submit

__all__ = ["BackgroundCalls", "awaited", "check_call", "in_order"]

Item = TypeVar("Item")
Result = TypeVar("Result")
_WORKERS = 2
"""Threads for small calls, and as many for large ones: one prepares and stores while the other has its turn."""


def check_call(cancel: Any, progress: Any, on_step: Any = None) -> None:
    """Raise `OptionError` for anything else than a token and functions, or None."""
    instance("cancel", cancel, Cancel)
    callback("progress", progress)
    callback("on_step", on_step)


class BackgroundCalls(Generic[Result]):
    """Calls in worker threads, until they are closed. Safe to use from many threads."""

    def __init__(self, *, closed: bool = False) -> None:
        self._lock = threading.Lock()
        self._closing = Cancel()
        self.closed = closed
        self._executors: dict[bool, ThreadPoolExecutor] = {}

    def check_open(self) -> None:
        """Raise `EngineError` after `close`."""
        if self.closed:
            raise EngineError("this Upscaler was closed")

    def submit(self, call: Callable[[Cancel], Result], cancel: Cancel | None, *, small: bool) -> Future[Result]:
        """Call in a worker, with a token that `cancel` and `close` set. Small and large calls have two workers each.

        Raises `EngineError` after `close`, and if no worker can be started.
        """
        own = Cancel(self._closing, cancel)
        with self._lock:
            self.check_open()
            if small not in self._executors:
                self._executors[small] = ThreadPoolExecutor(_WORKERS, thread_name_prefix="rdsr")
            return submit(self._executors[small], partial(call, own), own)

    def close(self) -> None:
        """Stop all calls: running calls see their token, waiting calls end at once with `CancelledError`."""
        with self._lock:
            self.closed = True
            executors, self._executors = self._executors, {}
        self._closing.set()
        for executor in executors.values():
            with contextlib.suppress(RuntimeError):  # a callback in one of its workers, which cannot wait for itself
                executor.shutdown()


def in_order(
    submit_one: Callable[[Item, Cancel], Future[Result]], items: Iterable[Item], look_ahead: int, cancel: Cancel | None
) -> Iterator[Result]:
    """Results in the order of the items; at most `look_ahead` items are taken before their results are asked for.

    An item that fails raises its error in its place, which ends the iteration. Stopping early stops the running calls.
    Raises `OptionError` at once if `look_ahead` is below 1.
    """
    if isinstance(look_ahead, bool) or not isinstance(look_ahead, int) or look_ahead < 1:
        raise OptionError(f"look_ahead must be a whole number from 1, not {look_ahead!r}")
    own = Cancel(cancel)
    running: deque[Future[Result]] = deque()

    def results() -> Iterator[Result]:
        try:
            for item in items:
                running.append(submit_one(item, own))
                if len(running) >= look_ahead:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            own.set()
            for future in running:
                future.cancel()

    return results()


async def awaited(submit_one: Callable[[Cancel], Future[Result]], cancel: Cancel | None) -> Result:
    """The result for asyncio. Cancelling the task, or closing the loop, stops the call."""
    import asyncio

    own = Cancel(cancel)
    try:
        return await asyncio.wrap_future(submit_one(own))
    finally:  # cancelled, or closed with its loop; setting the token of a finished call has no effect
        own.set()
