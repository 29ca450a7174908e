"""Calls in other threads: the thread that engines run in, and calls that wait for a worker."""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from ..errors import CancelledError, EngineError
from .cancel import POLL_SECONDS, RECHECK_SECONDS, Cancel
from .processes import in_forked_children
from .turns import process_turns

__all__ = ["EngineThread", "submit"]

Result = TypeVar("Result")
_SHORT_WAIT_SECONDS = 0.3
_ALIVE: weakref.WeakSet[EngineThread] = weakref.WeakSet()
in_forked_children(_ALIVE.clear)  # the parent's threads do not exist there, and waiting for their locks might never end


class _Call(Generic[Result]):
    """A call that waits. The first to claim it ends it: the thread that reaches it, or its cancellation."""

    def __init__(self, call: Callable[[], Result], future: Future[Result]) -> None:
        # Both are dropped once the call is done, so that no cycle with the future keeps an error, and so the picture, alive.
        self._call: Callable[[], Result] | None = call
        self._future: Future[Result] | None = future
        self._claim = threading.Lock()  # never released
        future.add_done_callback(self._done)

    @property
    def ended(self) -> bool:
        """Whether it was claimed; then nobody has to wait for it."""
        return self._claim.locked()

    def _claimed(self) -> Future[Result] | None:
        """The future, if this caller is the one to end it."""
        future = self._future
        mine = future is not None and self._claim.acquire(blocking=False)
        return future if mine and future is not None and future.set_running_or_notify_cancel() else None

    def run(self) -> None:
        """Make the call, in the thread whose turn it is."""
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
        """Cancel the call if it has not begun."""
        if (future := self._claimed()) is not None:
            future.set_exception(CancelledError("the call was cancelled"))

    def _done(self, future: Future[Result]) -> None:
        if future.cancelled():
            self._claimed()  # wakes those who wait for the future now, not when a worker reaches the call
        self._call = self._future = None


def submit(executor: Executor, work: Callable[[], Result], cancel: Cancel) -> Future[Result]:
    """Call in a worker, or never if `cancel` is set before it begins. Raises `EngineError` if no worker can be started."""
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
    """The one thread in which the engines of an `Upscaler` compute: one job after another, in the order of the requests.

    glibc keeps a heap for every thread, and engines keep scratch memory for every thread that calls them, so the memory of a
    tile would stay behind once for each caller. Sixteen callers under a limit of 107 MiB took 145 MiB in their own threads
    (205 with alpha), and 86 in one. Signals never reach this thread, so Ctrl-C in a caller costs no turn.
    """

    def __init__(self, threads: int) -> None:
        """The thread starts with the first job. `threads`: number of the engine's threads; a job holds as many permits."""
        self._threads = threads
        self._queue: SimpleQueue[_Call[Any] | None] = SimpleQueue()
        self._starting = threading.Lock()
        self._stopped = self._given_up = False
        self._thread: threading.Thread | None = None
        _ALIVE.add(self)
        weakref.finalize(self, self._queue.put, None).atexit = False

    def run(self, work: Callable[[], Result], cancel: Cancel | None) -> Result:
        """Wait for the turn and do `work` in it. Returns its result, or raises its error.

        Raises `CancelledError` if `cancel` is set before `work` has begun, and `EngineError` if the thread cannot run. Once
        `work` has begun it is waited for, because it may write to the caller's arrays; only a second interruption does not.
        """
        if cancel is not None:
            cancel.check()
        self._start()
        future: Future[Result] = Future()
        call = _Call(work, future)
        try:
            self._queue.put(call)
            while not wait([future], RECHECK_SECONDS if cancel is None else POLL_SECONDS).done:
                if cancel is not None:
                    cancel.check()
            return future.result()
        except BaseException:
            try:
                call.drop()
                while not wait([future], RECHECK_SECONDS).done:
                    pass
            except BaseException:
                self._given_up = True
                raise
            raise
        finally:
            del future, call  # this frame is part of the error's traceback, which the future holds

    def stop(self) -> None:
        """End the thread after its present job; later calls of `run` raise `EngineError`.

        A job that a caller gave up, by a second interruption, may never end: then the wait is short.
        """
        with self._starting:
            self._stopped = True
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join(_SHORT_WAIT_SECONDS if self._given_up else None)

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
    """Stop before the interpreter is taken down: an engine's thread that finds it gone aborts the process."""
    for thread in list(_ALIVE):
        thread.stop()
