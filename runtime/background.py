"""Work for other threads: the one that runs all tiles, and calls that wait for a worker."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from .cancel import Cancel
from .errors import CancelledError

__all__ = ["one_thread", "submit"]

Result = TypeVar("Result")


def one_thread() -> ThreadPoolExecutor:
    """The thread for all that engines do for an `Upscaler`, begun when first needed.

    glibc keeps a heap for every thread, and engines keep scratch memory for every thread that calls them: what a tile took
    would stay behind once for each caller. Sixteen of them under a limit of 107 MiB: 145 MiB in their own threads, 205 with
    alpha, 86 in one.
    """
    return ThreadPoolExecutor(1, thread_name_prefix="rdsr-engine")


class _Waiting(Generic[Result]):
    """One call on its way. Whoever claims it first, a worker or its cancellation, ends it."""

    def __init__(self, call: Callable[[], Result], cancel: Cancel) -> None:
        self.future: Future[Result] = Future()
        self._call: Callable[[], Result] | None = call
        self._claim = threading.Lock()  # never let go of
        self._cancel = cancel
        self.future.add_done_callback(self._done)
        cancel.watch(self._drop)

    def run(self) -> None:
        if not self._claim.acquire(blocking=False) or not self.future.set_running_or_notify_cancel():
            return
        future, call = self.future, self._call
        assert call is not None
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)
            # Without these names no cycle of frame, error and future keeps the picture in memory.
            del self, future, call

    def _drop(self) -> None:
        if self._claim.acquire(blocking=False) and self.future.set_running_or_notify_cancel():
            self.future.set_exception(CancelledError("the call was cancelled"))

    def _done(self, future: Future[Result]) -> None:
        self._call = None
        self._cancel.unwatch(self._drop)


def submit(executor: Executor, call: Callable[[], Result], cancel: Cancel) -> Future[Result]:
    """Call in a worker. Where `cancel` is set before a worker has begun, the future raises `CancelledError` at once."""
    waiting = _Waiting(call, cancel)
    executor.submit(waiting.run)
    return waiting.future
