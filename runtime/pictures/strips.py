"""Pictures too large for memory: the rows of a file on their way to the network, and the rows of its result on theirs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Full, Queue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CancelledError, PictureError
from .channels import Region
from .reading import EncodedPicture
from .writing import PictureWriter, started_thread

__all__ = ["BANDS", "StripSource", "StripTarget"]

BANDS = 4
"""Bands of result rows that are in memory at once: being filled, waiting, being encoded, and a copy while one grows."""
_ROWS = 64
"""Rows that are decoded at a time."""


class StripSource:
    """The pixels of an encoded picture by region, as an array has them. Regions go downwards, or begin again at the top."""

    def __init__(self, picture: EncodedPicture, kept: int) -> None:
        """`kept`: rows above a region that stay in memory, because the next region may ask for them."""
        self._picture, self._kept = picture, kept
        self.shape = picture.header.shape
        self.dtype = np.dtype(picture.header.dtype)
        self._ahead: _Ahead | None = None
        self._window = np.empty((0, *self.shape[1:]), self.dtype)
        self._top = 0

    def __getitem__(self, region: Region) -> NDArray[Any]:
        rows, columns = region
        if rows.start < self._top or self._ahead is None:
            self.close()
            self._ahead = _Ahead(lambda: self._picture.strips(_ROWS))
            self._window, self._top = self._window[:0], 0
        bottom = self._top + len(self._window)
        if rows.stop > bottom:
            drop = max(0, min(rows.start - self._kept, bottom) - self._top)
            parts = [self._window[drop:]]
            self._top += drop
            while bottom < rows.stop:
                parts.append(next(self._ahead))
                bottom += len(parts[-1])
            self._window = np.concatenate(parts)
        return self._window[rows.start - self._top : rows.stop - self._top, columns]

    def blocks(self) -> Iterator[NDArray[Any]]:
        """All rows once, from top to bottom."""
        return self._picture.strips(_ROWS)

    def close(self) -> None:
        """Stop decoding."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None


class _Ahead:
    """Decodes a little ahead of its reader, in a thread of its own."""

    def __init__(self, strips: Callable[[], Iterator[NDArray[Any]]]) -> None:
        self._queue: Queue[NDArray[Any] | BaseException] = Queue(maxsize=2)
        self._closed = threading.Event()
        self._done = threading.Event()
        """Whether the thread has ended. `Thread.join`, once interrupted, no longer tells that in CPython 3.11."""

        def put(item: NDArray[Any] | BaseException) -> None:
            while not self._closed.is_set():
                with suppress(Full):
                    self._queue.put(item, timeout=0.1)
                    return

        def work() -> None:
            try:
                for strip in strips():
                    put(strip)
                    if self._closed.is_set():
                        return
                put(PictureError("the picture has fewer rows than its header says"))
            except BaseException as error:
                put(error)
            finally:
                self._done.set()

        started_thread(work, "rdsr-decode")

    def __next__(self) -> NDArray[Any]:
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        self._closed.set()
        self._done.wait()


class StripTarget:
    """The result by region, as an array has it. Regions go downwards; rows above the present one go to the writer."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], writer: PictureWriter) -> None:
        self.shape, self.dtype = shape, dtype
        self._writer = writer
        self._rows = np.empty((0, *shape[1:]), dtype)
        self._top = 0

    def __getitem__(self, region: Region) -> NDArray[Any]:
        """A view of the region, to read and to write."""
        rows, columns = region
        if rows.start > self._top:
            count = rows.start - self._top
            self._writer.put(self._rows[:count])
            self._rows, self._top = self._rows[count:].copy(), rows.start
        missing = rows.stop - self._top - len(self._rows)
        if missing > 0:
            more = np.empty((missing, *self.shape[1:]), self.dtype)
            self._rows = np.concatenate([self._rows, more]) if len(self._rows) else more
        return self._rows[rows.start - self._top : rows.stop - self._top, columns]

    def finish(self) -> None:
        """Hand over the last rows. Raises what the writer raises."""
        if self._top + len(self._rows) != self.shape[0]:
            raise CancelledError("the result is not complete")
        self._writer.put(self._rows)
        self._writer.finish()
