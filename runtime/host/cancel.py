"""The token that stops calls."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ..errors import CancelledError, OptionError

__all__ = ["POLL_SECONDS", "RECHECK_SECONDS", "Cancel"]

POLL_SECONDS = 0.05
"""How often a waiting call looks at its token."""
RECHECK_SECONDS = 1.0
"""How often a wait without a token looks again.

Whoever was to end it may have been interrupted before, and Python notices a Ctrl-C that comes just before a wait
only after the wait.
"""


class Cancel:
    """A token that stops every call it was given to. Any thread may set it; calls look at it before each tile."""

    def __init__(self, *parents: Cancel | None) -> None:
        """`parents`: setting one of these tokens also sets this one. Raises `OptionError` for anything else."""
        if not all(parent is None or isinstance(parent, Cancel) for parent in parents):
            raise OptionError("the parents of a Cancel must be others of its kind, or None")
        self._event = threading.Event()
        self._parents = tuple(parent for parent in parents if parent is not None)
        self._watchers: dict[Callable[[], None], None] = {}

    def set(self) -> None:
        """Stop the calls: they raise `CancelledError`."""
        self._event.set()
        for watcher in list(self._watchers):
            watcher()

    def watch(self, watcher: Callable[[], None]) -> None:
        """Call `watcher`, once or more often, when this token or a parent is set; call it now if this one is set already."""
        self._watchers[watcher] = None
        for parent in self._parents:
            parent.watch(watcher)
        if self._event.is_set():
            watcher()

    def unwatch(self, watcher: Callable[[], None]) -> None:
        """Undo `watch`."""
        self._watchers.pop(watcher, None)
        for parent in self._parents:
            parent.unwatch(watcher)

    @property
    def is_set(self) -> bool:
        """Whether this token or a parent was set."""
        return self._event.is_set() or any(parent.is_set for parent in self._parents)

    def check(self) -> None:
        """Raise `CancelledError` if this token or a parent was set."""
        if self.is_set:
            raise CancelledError("the call was cancelled")
