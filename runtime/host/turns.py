"""Who runs next: callers of one process take turns, first come, first served, and never use more threads than there are."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable, Iterator
from typing import Protocol

from ..errors import OptionError
from . import cpu
from .processes import in_forked_children

__all__ = ["Shifts", "Stop", "Turns", "process_turns"]

_POLL_SECONDS = 0.05
"""How often a waiting call looks whether it was cancelled."""
_GRANT_SECONDS = 1.0
"""How often one that cannot be cancelled looks: whoever left may have been interrupted before telling anybody."""


class Stop(Protocol):
    """What a waiting call looks at, see `Cancel`."""

    def check(self) -> None:
        """Raise where the wait is no longer wanted."""
        ...


class _Ticket:
    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.granted = threading.Event()


class Turns:
    """A number of permits that are handed out strictly in the order in which they were asked for.

    What is granted follows from the queue of tickets alone, and a ticket leaves the queue with its holder, Ctrl-C included
    (short of a second one, while the first is on its way).
    """

    def __init__(self, permits: int) -> None:
        self.permits = permits
        self._lock = threading.Lock()
        self._tickets: list[_Ticket] = []
        """Of those who hold permits, and behind them of those who wait."""

    @contextlib.contextmanager
    def hold(self, wanted: int = 1, stop: Stop | None = None) -> Iterator[None]:
        """Wait for `wanted` permits (or all there are, if that is fewer), and give them back afterwards.

        `stop`: raises where the wait is to end without them.
        """
        ticket = _Ticket(min(wanted, self.permits))
        try:
            with self._lock:
                self._tickets.append(ticket)
            self._grant()
            while not ticket.granted.wait(_POLL_SECONDS if stop is not None else _GRANT_SECONDS):
                if stop is not None:
                    stop.check()
                self._grant()
            yield
        finally:
            with self._lock:
                if ticket in self._tickets:
                    self._tickets.remove(ticket)
            self._grant()

    def _grant(self) -> None:
        """Let those in whose turn it is: all from the front of the queue whose wishes fit together."""
        with self._lock:
            free = self.permits
            for ticket in self._tickets:
                free -= ticket.wanted
                if free < 0:
                    break
                ticket.granted.set()


class Shifts:
    """Callers of one kind at a time, together; those of another kind come when they have left, in the order of asking."""

    def __init__(self) -> None:
        self._door = Turns(1)
        self._left = threading.Condition()
        self._kind: Hashable = None
        self._inside: set[object] = set()
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
        token = object()
        try:
            with self._door.hold(stop=stop), self._left:
                while self._inside and self._kind != kind:
                    self._left.wait(_POLL_SECONDS if stop is not None else _GRANT_SECONDS)
                    if stop is not None:
                        stop.check()
                if self._kind != kind:
                    change()
                    self._kind = kind
                self._inside.add(token)
            self._here.kind = kind
            yield
        finally:
            self._here.kind = None
            with self._left:
                self._inside.discard(token)
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
