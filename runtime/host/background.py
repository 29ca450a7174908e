"""Work for other threads: the one that engines run in, and calls that wait for a worker."""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from ..errors import CancelledError, EngineError
from .cancel import Cancel
from .processes import in_forked_children
from .turns import process_turns

__all__ = ["EngineThread", "submit"]

Result = TypeVar("Result")
_ALIVE: weakref.WeakSet[EngineThread] = weakref.WeakSet()
_POLL_SECONDS = 0.05
"""How often a waiting call looks whether it was cancelled."""


class _Call(Generic[Result]):
    """One call on its way. Whoever claims it first, the thread that comes to it or its cancellation, ends it."""

    def __init__(self, call: Callable[[], Result], future: Future[Result]) -> None:
        # Neither is kept once it is done: no cycle of future and this holds an error, and with it the picture, in memory.
        self._call: Callable[[], Result] | None = call
        self._future: Future[Result] | None = future
        self._claim = threading.Lock()  # never let go of
        future.add_done_callback(self._done)

    @property
    def ended(self) -> bool:
        """Whether it was claimed, and need not be waited for."""
        return self._claim.locked()

    def _claimed(self) -> Future[Result] | None:
        """The future, where it is this caller who is to end it."""
        future = self._future
        mine = future is not None and self._claim.acquire(blocking=False)
        return future if mine and future is not None and future.set_running_or_notify_cancel() else None

    def run(self) -> None:
        """In the thread whose turn it is."""
        call, future = self._call, self._claimed()
        if future is None or call is None:
            return
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)
        finally:
            del self, future, call  # this frame is part of the error's traceback

    def drop(self) -> None:
        """It shall not begin any more."""
        if (future := self._claimed()) is not None:
            future.set_exception(CancelledError("the call was cancelled"))

    def _done(self, future: Future[Result]) -> None:
        if future.cancelled():
            self._claimed()  # whoever waits for the future learns of it now, and not when a worker comes to it
        self._call = self._future = None


def submit(executor: Executor, work: Callable[[], Result], cancel: Cancel) -> Future[Result]:
    """Call in a worker. Where `cancel` is set before a worker has begun, the future raises `CancelledError` at once.

    Raises `EngineError` where there can be no worker.
    """
    future: Future[Result] = Future()
    call = _Call(work, future)
    future.add_done_callback(lambda _: cancel.unwatch(call.drop))
    cancel.watch(call.drop)
    try:
        executor.submit(call.run)
    except RuntimeError as error:  # no more threads, or the process ends
        call.drop()
        raise EngineError(f"no call can be started in the background: {error}") from error
    return future


class EngineThread:
    """The thread for all that engines do for an `Upscaler`: one thing after the other, in the order of asking.

    glibc keeps a heap for every thread, and engines keep scratch memory for every thread that calls them: what a tile took
    would stay behind once for each caller. Sixteen of them under a limit of 107 MiB: 145 MiB in their own threads, 205 with
    alpha, 86 in one. Signals never come to this thread, so Ctrl-C in a caller costs no turn.
    """

    def __init__(self, threads: int) -> None:
        """`threads`: of the engine, as many of the process's are held meanwhile. The thread begins with the first work."""
        self._threads = threads
        self._queue: SimpleQueue[_Call[Any] | None] = SimpleQueue()
        self._starting = threading.Lock()
        self._stopped = False
        self._thread: threading.Thread | None = None
        _ALIVE.add(self)
        weakref.finalize(self, self._queue.put, None).atexit = False

    def run(self, work: Callable[[], Result], cancel: Cancel | None) -> Result:
        """Wait for the turn, do it, and give what it gives or raise what it raises.

        Raises `CancelledError` where `cancel` is set before it has begun. What has begun is waited for, whatever happens
        meanwhile: it may write to the caller's arrays.
        """
        if cancel is not None:
            cancel.check()
        self._start()
        future: Future[Result] = Future()
        call = _Call(work, future)
        try:
            self._queue.put(call)
            while cancel is not None and not wait([future], _POLL_SECONDS).done:
                cancel.check()
            return future.result()
        except BaseException:
            call.drop()
            wait([future])
            raise
        finally:
            del future, call  # this frame is part of the error's traceback, which the future holds

    def stop(self) -> None:
        """End the thread after the work that it is at; from now on `run` raises `EngineError`."""
        with self._starting:
            self._stopped = True
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join()

    def _start(self) -> None:
        with self._starting:
            if self._stopped:
                raise EngineError("no engine can be called while the process ends")
            if self._thread is None:
                thread = threading.Thread(target=_serve, args=(self._queue, self._threads), name="rdsr-engine", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:  # no more threads, or the process ends
                    raise EngineError(f"no thread can be started for the engine: {error}") from error
                self._thread = thread


def _serve(queue: SimpleQueue[_Call[Any] | None], threads: int) -> None:
    while (call := queue.get()) is not None:
        if not call.ended:
            with process_turns().hold(threads):
                call.run()
        del call


@atexit.register
def _stop_all() -> None:
    """Before the interpreter is taken down: a thread of an engine that finds it gone aborts the process."""
    for thread in list(_ALIVE):
        thread.stop()


@in_forked_children
def _forget_the_parent() -> None:
    """The parent's threads are not here, and to wait for their locks might be for ever."""
    _ALIVE.clear()
