"""Cross-fading: tiles that only approximate the whole picture are put together without a seam."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .tiles import Span, Tile

__all__ = ["Fade", "blend", "fade"]

Float = NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Fade:
    """Along one axis, in SR pixels: where a span contributes, and how much. All shares of a pixel sum to one."""

    source: slice
    """Where it contributes, counted in what became of the pixels that it read."""
    target: slice
    """The same, in the whole result."""
    own: Float
    """Its share of each of these pixels, above 0."""
    before: Float
    """The share that the spans before it have together: falling, and 0 from `shared` on."""

    @property
    def shared(self) -> int:
        """How many pixels, at the beginning, it shares with spans before it."""
        return int(np.count_nonzero(self.before))


def _risen(pixels: NDArray[np.int64], boundary: int, width: int) -> NDArray[np.float64]:
    """0 … 1 at the middles of these pixels: a linear ramp of `width` pixels around a boundary between two spans."""
    return np.clip((pixels + 0.5 - boundary) / width + 0.5, 0.0, 1.0)


def fade(span: Span, length: int, *, halo: int, scale: int) -> Fade:
    """What a span of `spans(length, …, halo)` contributes to an axis of `length` LR pixels; `halo` from 1.

    The ramps lie around the boundaries between the spans' own parts, `halo` wide in all: both neighbours read at least
    twice as much there (the last span, which may begin to read earlier, more), so the outer half of a halo, which suffers
    most from what it did not see, counts for nothing. A share is the difference of two ramps, of the span's beginning and of
    the next one's; so all shares sum to one even where spans are shorter than ramps, and several of these overlap.
    """
    reach = halo * scale // 2
    first, last = span.start == 0, span.stop == length
    start = 0 if first else span.start * scale - reach
    stop = length * scale if last else span.stop * scale + reach
    pixels = np.arange(start, stop)
    risen = np.ones(len(pixels)) if first else _risen(pixels, span.start * scale, halo * scale)
    next_risen = np.zeros(len(pixels)) if last else _risen(pixels, span.stop * scale, halo * scale)
    offset = span.read_start * scale
    return Fade(
        slice(start - offset, stop - offset),
        slice(start, stop),
        (risen - next_risen).astype(np.float32),
        (1.0 - risen).astype(np.float32),
    )


def blend(out: NDArray[Any], larger: NDArray[Any], tile: Tile, *, halo: int, scale: int) -> None:
    """Put a tile into `out`, sH×sW×C, mixed with those that are there already; tiles come in the order of `Plan.of`.

    `larger`: what became of the pixels that the tile read, of `out`'s dtype: uint8, uint16 or float32. No more than `out`
    is kept between tiles. A tile takes of each pixel the part that its share has in the shares so far, which in the end
    leaves every tile its share; mixed in float32, integers rounded half to even each time, never beyond the values mixed.
    """
    rows = fade(tile.rows, out.shape[0] // scale, halo=halo, scale=scale)
    columns = fade(tile.columns, out.shape[1] // scale, halo=halo, scale=scale)
    there, new = out[rows.target, columns.target], larger[rows.source, columns.source]
    part = _parts(rows, columns)
    top, left = rows.shared, columns.shared
    _mix(there[:top], new[:top], part[:top])
    _mix(there[top:, :left], new[top:, :left], part[top:, :left])
    there[top:, left:] = new[top:, left:]  # the first there: what `out` held before may be anything


def _parts(rows: Fade, columns: Fade) -> Float:
    """H×W×1 of 0 … 1: the tile's share of each pixel in all shares up to its own.

    Rows of tiles before its own have all their columns; of its own row only those before it are there.
    """
    down, across = rows.own[:, None], columns.own[None]
    so_far = rows.before[:, None] + down * (columns.before[None] + across)
    parts: Float = (down * across / so_far)[:, :, None]
    return parts


def _mix(there: NDArray[Any], new: NDArray[Any], part: Float) -> None:
    """there + part·(new − there), in place: equal values stay what they are, whatever the part."""
    old = there.astype(np.float32)
    mixed = old + part * (new.astype(np.float32) - old)
    there[...] = mixed if there.dtype == np.float32 else np.rint(mixed)
