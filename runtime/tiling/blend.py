"""Cross-fading: put tiles that only approximate the whole picture together without a seam."""

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
    """The part of one axis that a span contributes to, in SR pixels, and its share there. A pixel's shares sum to one."""

    source: slice
    """The part, counted in the span's own output."""
    target: slice
    """The part, counted in the whole result."""
    own: Float
    """The span's share of each of these pixels, above 0."""
    before: Float
    """Sum of the shares of the spans before it: falling, and 0 from `shared` on."""

    @property
    def shared(self) -> int:
        """Number of pixels at the beginning that the span shares with spans before it."""
        return int(np.count_nonzero(self.before))


def _risen(pixels: NDArray[np.int64], boundary: int, width: int) -> NDArray[np.float64]:
    """A linear ramp from 0 to 1, `width` pixels wide around `boundary`, at the middles of `pixels`."""
    return np.clip((pixels + 0.5 - boundary) / width + 0.5, 0.0, 1.0)


def fade(span: Span, length: int, *, halo: int, scale: int) -> Fade:
    """The contribution of a span of `spans(length, …, halo)` to an axis of `length` LR pixels; `halo` at least 1.

    A ramp lies around each boundary between two spans and is `halo` wide. Both neighbours read at least twice as much there,
    so the outer half of a halo, which suffers most from unseen pixels, counts for nothing. A share is the difference between
    the ramps at the span's beginning and at its end. So shares sum to one even if spans are shorter than ramps.
    """
    reach = halo * scale // 2
    first, last = span.start == 0, span.stop == length
    start = 0 if first else span.start * scale - reach
    stop = length * scale if last else min(length * scale, span.stop * scale + reach)
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


def blend(out: Any, larger: NDArray[Any], tile: Tile, *, halo: int, scale: int) -> None:
    """Mix a tile into `out`, sH×sW×C, which holds the tiles before it in the order of `Plan.of`.

    `larger`: the tile's output, of `out`'s dtype (uint8, uint16 or float32). Only `out` is kept between tiles. A tile's part
    of a pixel is its share among the shares so far, which in the end leaves every tile its share. Mixing is done in float32,
    never leaves the range of the mixed values, and rounds integers half to even each time.
    """
    rows = fade(tile.rows, out.shape[0] // scale, halo=halo, scale=scale)
    columns = fade(tile.columns, out.shape[1] // scale, halo=halo, scale=scale)
    there, new = out[rows.target, columns.target], larger[rows.source, columns.source]
    part = _parts(rows, columns)
    top, left = rows.shared, columns.shared
    _mix(there[:top], new[:top], part[:top])
    _mix(there[top:, :left], new[top:, :left], part[top:, :left])
    there[top:, left:] = new[top:, left:]  # the first tile there: `out` may have held anything before


def _parts(rows: Fade, columns: Fade) -> Float:
    """H×W×1 of 0 … 1: the tile's share of each pixel among all shares so far."""
    # Earlier rows of tiles are complete; in the tile's own row only the tiles before it are there.
    down, across = rows.own[:, None], columns.own[None]
    so_far = rows.before[:, None] + down * (columns.before[None] + across)
    parts: Float = (down * across / so_far)[:, :, None]
    return parts


def _mix(there: NDArray[Any], new: NDArray[Any], part: Float) -> None:
    """there + part·(new − there), in place. Equal values stay as they are for any part."""
    old = there.astype(np.float32)
    mixed = old + part * (new.astype(np.float32) - old)
    there[...] = mixed if there.dtype == np.float32 else np.rint(mixed)
