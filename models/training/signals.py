"""Signals that ask training to stop: the work in hand is finished first."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

__all__ = ["Stop", "stop_on"]


class Stop:
    """`asked` is true once somebody wants the work to stop. Signal handlers set it, which must not touch locks."""

    asked = False
    number: int | None = None
    """The signal that asked."""


@contextlib.contextmanager
def stop_on(*numbers: signal.Signals, once: bool = False) -> Iterator[Stop]:
    """Turn these signals into a wish to stop, even if the shell had them ignored.

    With `once`, only the first: the next one, of either kind, does what it did before. Signals can be caught in the main
    thread only; elsewhere nothing changes.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {number: signal.getsignal(number) for number in numbers}

    def ask(number: int, _: object) -> None:
        stop.asked, stop.number = True, number
        if once:
            for each, handler in previous.items():
                signal.signal(each, handler)

    for number in numbers:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
