"""How a picture is cut: tiles with a halo, all of one size, and the plan that keeps them inside a memory limit."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Iterator

__all__ = ["LEAST_STEP", "OVERLAP", "Plan", "Span", "Tile", "TileCost", "cells", "plan_tiles", "spans"]

LEAST_STEP = 8
"""LR pixels of its own that a tile has at least between its halos, where there are several."""
OVERLAP = 32
"""LR pixels that a tile reads beyond its own on each inner side where its network depends on the whole picture: no halo is
enough to be exact then, this much is for `blend` to hide the seams in."""


@dataclasses.dataclass(frozen=True)
class Span:
    """Along one axis, in LR pixels: what a tile reads, and the part of it that it is answerable for."""

    start: int
    stop: int
    read_start: int
    read_stop: int

    @property
    def inner(self) -> slice:
        """`start` … `stop`, counted from `read_start`."""
        return slice(self.start - self.read_start, self.stop - self.read_start)

    @property
    def read(self) -> int:
        """LR pixels that it reads."""
        return self.read_stop - self.read_start


@dataclasses.dataclass(frozen=True)
class Tile:
    """Rows and columns of one tile."""

    rows: Span
    columns: Span

    @property
    def read(self) -> tuple[slice, slice]:
        """The LR pixels that it reads."""
        return slice(self.rows.read_start, self.rows.read_stop), slice(self.columns.read_start, self.columns.read_stop)

    def inner(self, scale: int) -> tuple[slice, slice]:
        """The part that it is answerable for, in what became of the pixels it read, `scale` times larger."""
        rows, columns = self.rows.inner, self.columns.inner
        return slice(rows.start * scale, rows.stop * scale), slice(columns.start * scale, columns.stop * scale)

    def target(self, scale: int) -> tuple[slice, slice]:
        """The same part, in the whole result."""
        rows, columns = self.rows, self.columns
        return slice(rows.start * scale, rows.stop * scale), slice(columns.start * scale, columns.stop * scale)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one call does and needs."""

    tile: tuple[int, int]
    """LR pixels (height, width) that every tile reads, its halo with it."""
    grid: tuple[int, int]
    """Tiles down and across."""
    halo: int
    """LR pixels that neighbouring tiles read beyond their own; 0 for a single one."""
    peak_bytes: int
    """Upper estimate of what the process needs beyond what it had before loading, and beyond input and output."""
    exact: bool = True
    """Whether the result equals that of the whole picture, byte for byte; otherwise its tiles approximate it, blended."""

    @property
    def tiles(self) -> int:
        """How many there are."""
        return self.grid[0] * self.grid[1]

    def of(self, height: int, width: int) -> Iterator[Tile]:
        """The tiles of a picture of this size, row by row."""
        for rows in spans(height, self.tile[0], self.halo):
            for columns in spans(width, self.tile[1], self.halo):
                yield Tile(rows, columns)


def _count(length: int, read: int, halo: int) -> int | None:
    """How many spans that read `read` each cover `length`; None where they are all halo."""
    if read >= length:
        return 1
    return -(-(length - 2 * halo) // (read - 2 * halo)) if read >= 2 * halo + LEAST_STEP else None


def _even(length: int, count: int, halo: int) -> int:
    """The least that `count` spans have to read each to cover `length`."""
    return length if count == 1 else -(-(length + 2 * halo * (count - 1)) // count)


def spans(length: int, read: int, halo: int) -> list[Span]:
    """Cut 0 … length into spans that all read `read` (more than 2·halo): engines see one shape, whatever the picture.

    Where a span ends inside the picture, it reads at least `halo` beyond.
    """
    result: list[Span] = []
    start = 0
    while start < length:
        read_start = max(0, min(start - halo, length - read))
        read_stop = min(read_start + read, length)
        stop = length if read_stop == length else read_stop - halo
        result.append(Span(start, stop, read_start, read_stop))
        start = stop
    return result


def cells(length: int, size: int, halo: int) -> list[Span]:
    """Cut 0 … length into fixed pieces of `size`, the last one shorter, with `halo` around them inside the picture.

    They depend on the length alone, never on a plan: sums over them are the same whatever the tiling.
    """
    return [
        Span(start, min(start + size, length), max(0, start - halo), min(start + size + halo, length))
        for start in range(0, length, size)
    ]


class TileCost:
    """What a tile costs beside its pixels, counted in pixels: learned from the tiles that ran on this machine.

    A line through (pixels, seconds), weighted by 1/pixels² (small tiles count as much as large ones), older tiles less; the
    answer moves in powers of two, so that plans do not change with every tile, and stays while all tiles have one size. Safe
    to use from many threads.
    """

    usual = 400
    """Until it has seen tiles of several sizes: 0.2 ms of calls and copies where a pixel takes 0.5 µs."""
    _FADE = 0.98
    _LEAST_SPREAD = 0.1
    _RANGE = (100, 6400)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums = (0.0, 0.0, 0.0, 0.0, 0.0)
        self._seen = 0
        self._answer = self.usual

    def record(self, pixels: int, seconds: float) -> None:
        """A tile that read so many pixels took so long."""
        weight = 1 / pixels**2
        new = (weight, weight * pixels, 1.0, weight * seconds, weight * pixels * seconds)
        with self._lock:
            self._sums = tuple(self._FADE * old + value for old, value in zip(self._sums, new, strict=True))  # type: ignore[assignment]
            self._seen += 1

    @property
    def pixels(self) -> int:
        """The pixels that would take as long as everything else about a tile does."""
        with self._lock:
            one, x, xx, y, xy = self._sums
            seen = self._seen
        determinant = one * xx - x * x
        if seen < 8 or determinant < self._LEAST_SPREAD * one * xx:
            return self._answer
        per_tile, per_pixel = (xx * y - x * xy) / determinant, (one * xy - x * y) / determinant
        if per_pixel <= 0:
            return self._answer
        low, high = self._RANGE
        value = low
        while value < high and value * 1.5 < per_tile / per_pixel:
            value *= 2
        self._answer = value
        return value


@functools.lru_cache(1024)
def plan_tiles(
    height: int, width: int, *, halo: int, most_pixels: int, tile_cost: int = TileCost.usual
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """((tile height, tile width), (down, across)) with the least work of all cuts whose tiles read at most `most_pixels`.

    Work is what all tiles read together, halos with it, and `tile_cost` pixels for each. None where even the smallest tile
    that gets anywhere reads more.
    """
    best: tuple[int, tuple[int, int], tuple[int, int]] | None = None
    for rows in range(1, height + 1):
        tall = _even(height, rows, halo)
        down = _count(height, tall, halo)
        if down is None:
            break
        if down < rows:
            continue  # as many as before would do
        across = _count(width, min(width, most_pixels // tall), halo)
        if across is None:
            continue
        wide = _even(width, across, halo)
        across = _count(width, wide, halo) or across
        work = down * across * (tall * wide + tile_cost)
        if best is None or work < best[0]:
            best = work, (tall, wide), (down, across)
        if across == 1 and wide * tall <= most_pixels // 4:
            break  # flatter ones only read more
    return None if best is None else best[1:]
