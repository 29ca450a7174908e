"""Ctrl-C and SIGTERM: the first one stops the command, which then reports; the second one ends the process."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from typing import NoReturn

from .exit_codes import Terminated

__all__ = ["watch_signals"]

_STOPPING = (signal.SIGINT, signal.SIGTERM)
_GRACE_SECONDS = 0.7
"""Time that a command has from the first signal in any case: `timeout` and other programs send a signal twice at once."""
_SHOW_CURSOR = b"\x1b[?25h"


def watch_signals() -> None:
    """Turn SIGTERM into an ordinary exit, and let the second signal end the process within a second, whatever it is doing.

    Python runs the handlers of signals in the main thread, so not while that waits for an engine which hangs. But the
    interpreter notes every signal in a pipe, at once, and a thread reads it. Call it in the main thread, once.
    """
    signal.signal(signal.SIGTERM, _terminate)
    noted, note = os.pipe()
    os.set_blocking(note, False)
    signal.set_wakeup_fd(note, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # its signals are not ours
    threading.Thread(target=_end_at_second, args=(noted,), name="rdsr-signals", daemon=True).start()


def _terminate(*_: object) -> NoReturn:
    raise Terminated


def _end_at_second(noted: int) -> None:
    first: float | None = None
    while True:
        for number in os.read(noted, 64):
            if number not in _STOPPING:
                continue
            if first is None:
                first = time.monotonic()
                continue
            time.sleep(max(0.0, first + _GRACE_SECONDS - time.monotonic()))
            _end(128 + number)


def _end(code: int) -> NoReturn:
    """End without any clean-up, which an engine could keep from ending. Outputs are whole or absent at any moment."""
    with contextlib.suppress(OSError, ValueError):
        if os.isatty(2) and select.select((), (2,), (), 0)[1]:  # a terminal that was halted would block
            os.write(2, _SHOW_CURSOR)  # a progress bar has hidden it
    os._exit(code)
