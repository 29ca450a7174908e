"""Who runs next: callers of one process take turns, first come, first served, and never use more threads than there are."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from typing import Protocol

from . import cpu
from .errors import OptionError
from .processes import in_forked_children

__all__ = ["Shifts", "Stop", "Turns", "process_turns"]

_POLL_SECONDS = 0.05
"""How often a waiting call looks whether it was cancelled."""


class Stop(Protocol):
    """What a waiting call looks at, see `Cancel`."""

    def check(self) -> None:
        """Raise where the wait is no longer wanted."""
        ...


class Turns:
    """A number of permits that are handed out strictly in the order in which they were asked for."""

    def __init__(self, permits: int) -> None:
        self.permits = permits
        self._free = permits
        self._lock = threading.Lock()
        self._waiting: deque[tuple[int, threading.Event]] = deque()

    @contextlib.contextmanager
    def hold(self, wanted: int = 1, stop: Stop | None = None) -> Iterator[None]:
        """Wait for `wanted` permits (or all there are, if that is fewer), and give them back afterwards.

        `stop`: raises where the wait is to end without them.
        """
        wanted = min(wanted, self.permits)
        with self._lock:
            ticket: threading.Event | None = None
            if not self._waiting and self._free >= wanted:
                self._free -= wanted
            else:
                ticket = threading.Event()
                self._waiting.append((wanted, ticket))
        if ticket is not None:
            self._wait(wanted, ticket, stop)
        try:
            yield
        finally:
            self._give(wanted)

    def _wait(self, wanted: int, ticket: threading.Event, stop: Stop | None) -> None:
        try:
            while not ticket.wait(None if stop is None else _POLL_SECONDS):
                if stop is not None:
                    stop.check()
        except BaseException:  # cancelled, or Ctrl-C: leave the queue, or give back what was just handed over
            with self._lock:
                served = ticket.is_set()
                if not served:
                    self._waiting.remove((wanted, ticket))
            self._give(wanted if served else 0)
            raise

    def _give(self, permits: int) -> None:
        with self._lock:
            self._free += permits
            while self._waiting and self._free >= self._waiting[0][0]:
                wanted, ticket = self._waiting.popleft()
                self._free -= wanted
                ticket.set()


class Shifts:
    """Callers of one kind at a time, together; those of another kind come when they have left, in the order of asking."""

    def __init__(self) -> None:
        self._door = Turns(1)
        self._left = threading.Condition()
        self._kind: Hashable = None
        self._inside = 0
        self._here = threading.local()

    @contextlib.contextmanager
    def hold(self, kind: Hashable, change: Callable[[], None], stop: Stop | None = None) -> Iterator[None]:
        """Be inside with others of this kind; `change` is called, with nobody inside, where the last kind was another.

        A thread that is inside already stays so; with another kind it would wait for itself, which raises `OptionError`.
        """
        if (here := getattr(self._here, "kind", None)) is not None:
            if here != kind:
                raise OptionError("under a memory limit, a progress callback cannot upscale a picture of another kind")
            yield
            return
        with self._door.hold(stop=stop), self._left:
            while self._inside and self._kind != kind:
                self._left.wait(None if stop is None else _POLL_SECONDS)
                if stop is not None:
                    stop.check()
            if self._kind != kind:
                change()
                self._kind = kind
            self._inside += 1
        self._here.kind = kind
        try:
            yield
        finally:
            self._here.kind = None
            with self._left:
                self._inside -= 1
                self._left.notify_all()


_PROCESS: list[Turns] = []
_PROCESS_LOCK = threading.Lock()


def process_turns() -> Turns:
    """The permits of this process, one for each thread that it may use; a forked child has its own."""
    with _PROCESS_LOCK:
        if not _PROCESS:
            _PROCESS.append(Turns(cpu.process_threads()))
        return _PROCESS[0]


@in_forked_children
def _forget_the_parent() -> None:
    """Forget the parent's permits, and its lock, which another thread may have held."""
    global _PROCESS_LOCK
    _PROCESS_LOCK = threading.Lock()
    _PROCESS.clear()
