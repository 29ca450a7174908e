"""Who runs next: callers of one process take turns, first come, first served, and never use more threads than there are."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable, Iterator

from ..errors import OptionError
from . import cpu
from .cancel import POLL_SECONDS, RECHECK_SECONDS, Cancel
from .processes import in_forked_children

__all__ = ["Shifts", "Turns", "process_turns"]


class _Ticket:
    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.granted = threading.Event()


class Turns:
    """A number of permits that are handed out strictly in the order of the requests.

    Only the queue of tickets decides who holds permits. A ticket leaves the queue with its holder, also at Ctrl-C (unless a
    second one comes while the first is being handled).
    """

    def __init__(self, permits: int) -> None:
        self.permits = permits
        self._lock = threading.Lock()
        self._tickets: list[_Ticket] = []
        """Tickets of the holders, and behind them those of the waiting callers."""

    @contextlib.contextmanager
    def hold(self, wanted: int = 1, stop: Cancel | None = None) -> Iterator[None]:
        """Hold `wanted` permits (at most all there are). Raises `CancelledError` if `stop` is set during the wait."""
        ticket = _Ticket(min(wanted, self.permits))
        try:
            with self._lock:
                self._tickets.append(ticket)
            self._grant()
            while not ticket.granted.wait(RECHECK_SECONDS if stop is None else POLL_SECONDS):
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
        """Admit tickets from the front of the queue, as many as the permits allow."""
        with self._lock:
            free = self.permits
            for ticket in self._tickets:
                free -= ticket.wanted
                if free < 0:
                    break
                ticket.granted.set()


class Shifts:
    """Admits callers of one kind at a time, any number of them. Another kind enters when they have left, in order."""

    def __init__(self) -> None:
        self._door = Turns(1)
        self._left = threading.Condition()
        self._kind: Hashable = None
        self._inside: set[object] = set()
        self._here = threading.local()

    @contextlib.contextmanager
    def hold(self, kind: Hashable, change: Callable[[], None], stop: Cancel | None = None) -> Iterator[None]:
        """Enter as a caller of this kind. If the last kind was another, `change` is called first, while no caller is inside.

        A thread that is already inside may enter again. Raises `OptionError` if it comes with another kind, because it would
        wait for itself, and `CancelledError` if `stop` is set during the wait.
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
                    self._left.wait(RECHECK_SECONDS if stop is None else POLL_SECONDS)
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
    """The permits of this process, one for each thread that it may use. A forked child gets new ones."""
    with _PROCESS_LOCK:
        if not _PROCESS:
            _PROCESS.append(Turns(cpu.process_threads()))
        return _PROCESS[0]


@in_forked_children
def _forget_the_parent() -> None:
    global _PROCESS_LOCK
    _PROCESS_LOCK = threading.Lock()  # another thread of the parent may have held the old one
    _PROCESS.clear()
