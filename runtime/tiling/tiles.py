"""Cut a picture into tiles with a halo, all of one size, and plan them so that they stay inside a memory limit."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Iterator

__all__ = ["LEAST_STEP", "OVERLAP", "Plan", "Span", "Tile", "TileCost", "cells", "halo_of", "plan_tiles", "spans"]

LEAST_STEP = 8
"""Fewest LR pixels that a tile has between its halos, if there are several tiles."""
OVERLAP = 32
"""Halo, in LR pixels, of networks that depend on the whole picture. None would be exact; `blend` hides the seams in it."""


def halo_of(tile_rule: str, receptive_radius: int | None) -> int | None:
    """LR pixels that tiles of a network read beyond their own; None if it needs the whole picture at once."""
    return {"exact": receptive_radius, "overlap": OVERLAP}.get(tile_rule)


@dataclasses.dataclass(frozen=True)
class Span:
    """One axis of a tile, in LR pixels: it reads `read_start` … `read_stop` and produces `start` … `stop`."""

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
        """Number of LR pixels that the tile reads."""
        return self.read_stop - self.read_start


@dataclasses.dataclass(frozen=True)
class Tile:
    """Rows and columns of one tile."""

    rows: Span
    columns: Span

    @property
    def read(self) -> tuple[slice, slice]:
        """The LR pixels that the tile reads."""
        return slice(self.rows.read_start, self.rows.read_stop), slice(self.columns.read_start, self.columns.read_stop)

    def inner(self, scale: int) -> tuple[slice, slice]:
        """The part that the tile produces, in its own output, which is `scale` times larger than the pixels it read."""
        return _scaled(self.rows.inner, scale), _scaled(self.columns.inner, scale)

    def target(self, scale: int) -> tuple[slice, slice]:
        """The same part, in the whole result."""
        return _scaled(self.rows, scale), _scaled(self.columns, scale)


def _scaled(part: Span | slice, scale: int) -> slice:
    return slice(part.start * scale, part.stop * scale)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The tiles and the memory of one call."""

    tile: tuple[int, int]
    """LR pixels (height, width) that every tile reads, halo included."""
    grid: tuple[int, int]
    """Tiles down and across."""
    halo: int
    """LR pixels that a tile reads beyond its own at each inner side; 0 for a single tile."""
    peak_bytes: int
    """Upper estimate of the memory that loading and the call need, beside input and output."""
    exact: bool = True
    """Whether the result equals that of the whole picture byte for byte; otherwise blended tiles approximate it."""

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return self.grid[0] * self.grid[1]

    def of(self, height: int, width: int) -> Iterator[Tile]:
        """The tiles of a picture of this size, row by row."""
        for rows in spans(height, self.tile[0], self.halo):
            for columns in spans(width, self.tile[1], self.halo):
                yield Tile(rows, columns)


def _count(length: int, read: int, halo: int) -> int | None:
    """Number of spans reading `read` pixels each that cover `length`; None if the halos leave too little between them."""
    if read >= length:
        return 1
    return -(-(length - 2 * halo) // (read - 2 * halo)) if read >= 2 * halo + LEAST_STEP else None


def _even(length: int, count: int, halo: int) -> int:
    """Fewest pixels that each of `count` spans has to read to cover `length`."""
    return length if count == 1 else -(-(length + 2 * halo * (count - 1)) // count)


def _cuts(length: int, most: int, halo: int) -> Iterator[tuple[int, int]]:
    """(pixels that each span reads, number of spans) of all even cuts with spans of at most `most` pixels, longest first."""
    # By the length of a span, not by the number of spans: a length of 10⁹ has millions of cuts, and a span few lengths.
    read = most
    while (count := _count(length, read, halo)) is not None:
        read = _even(length, count, halo)
        if _count(length, read, halo) == count:  # otherwise fewer spans do the same
            yield read, count
        read = min(read - 1, _even(length, count + 1, halo))


def spans(length: int, read: int, halo: int) -> list[Span]:
    """Cut 0 … length into spans that all read `read` pixels (more than 2·halo), so that the engine sees a single shape.

    A span that ends inside the picture reads at least `halo` beyond its end.
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
    """Cut 0 … length into pieces of `size`, the last one shorter, which read `halo` beyond their ends inside the picture.

    They depend on the length and never on a plan, so sums over them are the same for any tiling.
    """
    return [
        Span(start, min(start + size, length), max(0, start - halo), min(start + size + halo, length))
        for start in range(0, length, size)
    ]


class TileCost:
    """The fixed cost of a tile, expressed in pixels and learned from the tiles that ran on this machine.

    It fits a line through (pixels, seconds), weighted by 1/pixels² (small tiles count as much as large ones) and less for
    older tiles. The answer moves in powers of two, so that plans do not change with every tile, and stays while all tiles
    have one size. Safe to use from many threads.
    """

    usual = 400
    """The answer before tiles of several sizes were seen: 0.2 ms of calls and copies, at 0.5 µs for each pixel."""
    _FADE = 0.98
    _LEAST_SPREAD = 0.1
    _RANGE = (100, 6400)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums = (0.0, 0.0, 0.0, 0.0, 0.0)
        self._seen = 0
        self._answer = self.usual

    def record(self, pixels: int, seconds: float) -> None:
        """Note that a tile of `pixels` read pixels took `seconds`."""
        weight = 1 / pixels**2
        new = (weight, weight * pixels, 1.0, weight * seconds, weight * pixels * seconds)
        with self._lock:
            self._sums = tuple(self._FADE * old + value for old, value in zip(self._sums, new, strict=True))  # type: ignore[assignment]
            self._seen += 1

    @property
    def pixels(self) -> int:
        """Number of pixels that take as long as the fixed part of a tile."""
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
    height: int, width: int, *, halo: int, most_pixels: int, most_rows: int | None = None, tile_cost: int = TileCost.usual
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """((tile height, tile width), (down, across)) with the least work of all cuts whose tiles read at most `most_pixels`.

    Work is the number of pixels that all tiles read, halos included, plus `tile_cost` for each tile. `most_rows`: greatest
    height of a tile. None if even the smallest usable tile reads more.
    """
    best: tuple[int, tuple[int, int], tuple[int, int]] | None = None
    for tall, down in _cuts(height, min(height, most_pixels, most_rows or height), halo):
        across = _count(width, min(width, most_pixels // tall), halo)
        if across is None:
            continue
        wide = _even(width, across, halo)
        across = _count(width, wide, halo) or across
        work = down * across * (tall * wide + tile_cost)
        if best is None or work < best[0]:
            best = work, (tall, wide), (down, across)
        if across == 1 and wide * tall <= most_pixels // 4:
            break  # flatter tiles only read more
    return None if best is None else best[1:]
