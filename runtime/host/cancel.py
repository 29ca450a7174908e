"""The token that stops calls."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ..errors import CancelledError

__all__ = ["Cancel"]


class Cancel:
    """A token that stops the calls it was given to: set by any thread, seen before the next tile."""

    def __init__(self, *parents: Cancel | None) -> None:
        """`parents`: tokens that set this one as well."""
        self._event = threading.Event()
        self._parents = tuple(parent for parent in parents if parent is not None)
        self._watchers: dict[Callable[[], None], None] = {}

    def set(self) -> None:
        """Stop; the calls raise `CancelledError`."""
        self._event.set()
        for watcher in list(self._watchers):
            watcher()

    def watch(self, watcher: Callable[[], None]) -> None:
        """Call `watcher`, once or more often, when `set` is called here or on a parent; at once if it was."""
        self._watchers[watcher] = None
        for parent in self._parents:
            parent.watch(watcher)
        if self._event.is_set():
            watcher()

    def unwatch(self, watcher: Callable[[], None]) -> None:
        """Forget what `watch` was given."""
        self._watchers.pop(watcher, None)
        for parent in self._parents:
            parent.unwatch(watcher)

    @property
    def is_set(self) -> bool:
        """Whether `set` was called, here or on a parent."""
        return self._event.is_set() or any(parent.is_set for parent in self._parents)

    def check(self) -> None:
        """Raise `CancelledError` if `set` was called."""
        if self.is_set:
            raise CancelledError("the call was cancelled")
