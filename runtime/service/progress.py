"""How far requests are, for whoever asks: tiles done, as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator

__all__ = ["ProgressBoard"]

_MOST = 1000
"""Ids that are waited for at once; followers of more get nothing."""
_PATIENCE = 30.0
"""Seconds that a follower waits for a request of this id to arrive."""


@dataclasses.dataclass(eq=False)
class _Entry:
    done: int = 0
    total: int = 0
    ended: bool = False
    followers: int = 0
    working: bool = False
    changed: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)


class ProgressBoard:
    """Progress by request id. All methods are for the event loop; what `following` gives may be called in any thread."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._closed = False

    def _forget(self, name: str, entry: _Entry) -> None:
        if not entry.followers and not entry.working and self._entries.get(name) is entry:
            del self._entries[name]

    @contextlib.contextmanager
    def following(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """A progress callback for the request of this id, which is on the board until it ends.

        If two requests at a time have one id, the first is shown.
        """
        entry, loop = self._entries.setdefault(name, _Entry()), asyncio.get_running_loop()
        if entry.working:
            yield lambda done, total: None
            return
        entry.working, entry.ended, entry.done, entry.total = True, False, 0, 0

        def note(done: int, total: int) -> None:
            entry.done, entry.total = done, total
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(entry.changed.set)

        try:
            yield note
        finally:
            entry.working, entry.ended = False, True
            entry.changed.set()
            self._forget(name, entry)

    def close(self) -> None:
        """Let all followers go, and take no more."""
        self._closed = True
        for entry in self._entries.values():
            entry.changed.set()

    async def follow(self, name: str) -> AsyncIterator[dict[str, int]]:
        """What changes, as {"done", "total"} in tiles, until the request ends, or does not arrive within half a minute."""
        if name not in self._entries and sum(not entry.working for entry in self._entries.values()) >= _MOST:
            return
        entry = self._entries.setdefault(name, _Entry())
        entry.followers += 1
        try:
            shown = (0, 0)
            while True:
                entry.changed.clear()
                now = (entry.done, entry.total)
                if now != shown:
                    shown = now
                    yield {"done": now[0], "total": now[1]}
                    continue  # it may have changed in the meantime
                if entry.ended or self._closed:
                    return
                async with asyncio.timeout(None if entry.working else _PATIENCE):
                    await entry.changed.wait()
        except TimeoutError:
            return
        finally:
            entry.followers -= 1
            self._forget(name, entry)
