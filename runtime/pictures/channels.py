"""Between a picture and the network: the colour that the network sees, and the place that takes its result and the alpha."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .alpha import ALPHA_REACH, SPREAD_REACH, enlarge_alpha, spread_colour
from .arrays import FULL_SCALE

__all__ = ["Colour", "Pixels", "Region", "Target", "channels_of", "is_colourless"]

Region = tuple[slice, slice]
"""Rows and columns."""


class Pixels(Protocol):
    """H×W or H×W×C pixels, read and written by region: an array, or strips of a file."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __getitem__(self, region: Region, /) -> NDArray[Any]: ...


def channels_of(pixels: Pixels) -> int:
    """1 (grey) … 4 (RGBA)."""
    return 1 if len(pixels.shape) == 2 else pixels.shape[2]


def is_colourless(pixels: NDArray[Any]) -> bool:
    """Whether RGB or RGBA pixels are grey (R = G = B) wherever anything is visible."""
    if pixels.ndim == 2 or pixels.shape[2] < 3:
        return True
    sample = pixels[::17, ::13]  # nearly all pictures have colour, and show it soon
    return _grey(sample) and _grey(pixels)


def _grey(pixels: NDArray[Any]) -> bool:
    red, green, blue = (pixels[:, :, channel] for channel in range(3))
    if pixels.shape[2] == 3:
        return np.array_equal(red, green) and np.array_equal(green, blue)
    return not np.any(((red != green) | (green != blue)) & (pixels[:, :, 3] > 0))


def _wider(region: Region, reach: int, shape: tuple[int, ...]) -> tuple[Region, Region]:
    """The region with `reach` more pixels on each side, inside the picture, and the region within that."""
    wide, inner = [], []
    for part, length in zip(region, shape[:2], strict=True):
        start = max(0, part.start - reach)
        wide.append(slice(start, min(length, part.stop + reach)))
        inner.append(slice(part.start - start, part.stop - start))
    return (wide[0], wide[1]), (inner[0], inner[1])


class Colour:
    """H×W×1 or H×W×3: what the network sees of a picture. Transparent pixels have the colour of what is visible nearby."""

    def __init__(self, pixels: Pixels, *, grey: bool) -> None:
        """`grey`: whether the picture shows no colour, so that one channel says all."""
        self._pixels = pixels
        self._alpha = channels_of(pixels) in (2, 4)
        self.shape = (*pixels.shape[:2], 1 if grey or channels_of(pixels) < 3 else 3)
        self.dtype = pixels.dtype

    def __getitem__(self, region: Region) -> NDArray[Any]:
        if not self._alpha:
            block = self._pixels[region]
            return (block[:, :, None] if block.ndim == 2 else block)[:, :, : self.shape[2]]
        wide, inner = _wider(region, SPREAD_REACH, self.shape)
        block = self._pixels[wide]
        return spread_colour(block[:, :, : self.shape[2]], block[:, :, -1], FULL_SCALE[self.dtype])[inner]


class Target:
    """The result: it takes colour by region, and adds the enlarged alpha of the same region."""

    def __init__(self, out: Pixels, pixels: Pixels, scale: int) -> None:
        """`out`: `scale` times larger than `pixels`, with as many channels."""
        self._out, self._pixels, self._scale = out, pixels, scale
        self._alpha = channels_of(pixels) in (2, 4)
        self.shape, self.dtype = out.shape, out.dtype

    def __setitem__(self, region: Region, larger: NDArray[Any]) -> None:
        """Store H×W×1 (also for three channels) or H×W×3 of colour."""
        self[region][...] = larger

    def __getitem__(self, region: Region) -> NDArray[Any]:
        """The colour of a region, H×W×1 or H×W×3, to read and to write. Its alpha is stored now."""
        block = self._out[region]
        if block.ndim == 2:
            return block[:, :, None]
        if not self._alpha:
            return block
        rows, columns = (slice(part.start // self._scale, part.stop // self._scale) for part in region)
        wide, inner = _wider((rows, columns), ALPHA_REACH, self._pixels.shape)
        alpha = self._pixels[wide][:, :, -1]
        block[:, :, -1] = enlarge_alpha(alpha, self._scale, inner, FULL_SCALE[self.dtype])
        return block[:, :, :-1]
