"""A photograph of any size, to time and try models on: networks are trained on photographs, and some overflow on noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...runtime.pictures.reading import read_picture

__all__ = ["photograph"]

_FILE = Path(__file__).parents[2] / "export" / "samples" / "HR" / "portrait.png"
_BEGIN = 150
"""Row and column that come first: even a small part shows light and dark."""


def photograph(height: int, width: int) -> NDArray[np.uint8]:
    """H×W×3 uint8: the package's portrait, mirrored at its edges as often as needed."""
    pixels = read_picture(_FILE).pixels
    for axis, length in enumerate((height, width)):
        side = pixels.shape[axis]
        there = [*range(side), *range(side - 1, -1, -1)] * (2 + length // (2 * side))
        pixels = pixels.take(there[_BEGIN : _BEGIN + length], axis=axis)
    return np.ascontiguousarray(pixels)
