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

    def __init__(self, call: Callable[[], Result], future: Future[Result], cancel: Cancel) -> None:
        # Neither is kept once it is done: no cycle of future and this holds an error, and with it the picture, in memory.
        self._call: Callable[[], Result] | None = call
        self._future: Future[Result] | None = future
        self._claim = threading.Lock()  # never let go of
        self._cancel = cancel
        future.add_done_callback(self._done)
        cancel.watch(self._drop)

    def _claimed(self) -> Future[Result] | None:
        """The future, where it is this caller who is to end it."""
        future = self._future
        mine = future is not None and self._claim.acquire(blocking=False)
        return future if mine and future is not None and future.set_running_or_notify_cancel() else None

    def run(self) -> None:
        call, future = self._call, self._claimed()
        if future is None or call is None:
            return
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)
        finally:
            del self, future, call  # this frame is part of the error's traceback

    def _drop(self) -> None:
        if (future := self._claimed()) is not None:
            future.set_exception(CancelledError("the call was cancelled"))

    def _done(self, future: Future[Result]) -> None:
        if future.cancelled():
            self._claimed()  # whoever waits for the future learns of it now, and not when a worker comes to it
        self._call = self._future = None
        self._cancel.unwatch(self._drop)


def submit(executor: Executor, call: Callable[[], Result], cancel: Cancel) -> Future[Result]:
    """Call in a worker. Where `cancel` is set before a worker has begun, the future raises `CancelledError` at once."""
    future: Future[Result] = Future()
    executor.submit(_Waiting(call, future, cancel).run)
    return future
