"""Transparency: the network sees only colour. Alpha is enlarged beside it, and decides which colours count."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ALPHA_REACH", "SPREAD_REACH", "enlarge_alpha", "spread_colour"]

ALPHA_REACH = 2
"""LR pixels around a region that its enlarged alpha depends on."""
SPREAD_REACH = 32
"""LR pixels around a region that its spread colour depends on. Networks see about as far."""
_WINDOWS = (5, 17, 2 * SPREAD_REACH + 1)
_FAINT = 1 / 8
"""Alpha, of full scale, below which a pixel's colour is mixed with that of its surroundings: it may be badly rounded."""
_SHARPNESS = -0.75
"""Parameter of the bicubic kernel (Keys 1981), as OpenCV has it."""


def enlarge_alpha(alpha: NDArray[Any], scale: int, inner: tuple[slice, slice], full: float) -> NDArray[Any]:
    """Enlarge H×W alpha of 0 … `full` by bicubic interpolation, and return the part of `inner` (LR pixels).

    `alpha` holds the pixels around `inner` up to `ALPHA_REACH`, as far as the picture has them; beyond its edge the last
    pixels repeat. Each pixel is computed in the same way for any cut of the picture into regions.
    """
    values = alpha.astype(np.float32)
    for axis, part in enumerate(inner):
        values = _enlarged(values, axis, part, scale)
    values = np.clip(values, 0.0, full)
    return values if alpha.dtype == np.float32 else np.rint(values).astype(alpha.dtype)


def _enlarged(values: NDArray[np.float32], axis: int, part: slice, scale: int) -> NDArray[np.float32]:
    """Enlarge one axis: every `scale`-th row or column of the result has the same four weights."""
    values = np.moveaxis(values, axis, 0)
    rows = np.clip(np.arange(part.start - ALPHA_REACH, part.stop + ALPHA_REACH), 0, len(values) - 1)
    values = values[rows]
    count = part.stop - part.start
    out = np.empty((count * scale, values.shape[1]), np.float32)
    for phase in range(scale):
        offset = (phase + 0.5) / scale - 0.5
        first = 0 if offset < 0 else 1  # of the four rows, counted from `ALPHA_REACH` before the pixel
        weights = _weights(offset + 1 if offset < 0 else offset)
        total = weights[0] * values[first : first + count]
        for tap in (1, 2, 3):
            total += weights[tap] * values[first + tap : first + tap + count]
        out[phase::scale] = total
    return np.moveaxis(out, 0, axis)


def _weights(t: float) -> NDArray[np.float32]:
    """Weights of four neighbours for a point `t` (0 … 1) beyond the second."""

    def near(x: float) -> float:
        return ((_SHARPNESS + 2) * x - (_SHARPNESS + 3)) * x * x + 1

    def far(x: float) -> float:
        return _SHARPNESS * (((x - 5) * x + 8) * x - 4)

    return np.array([far(1 + t), near(t), near(1 - t), far(2 - t)], np.float32)


def spread_colour(colour: NDArray[Any], alpha: NDArray[Any], full: float) -> NDArray[Any]:
    """H×W×C colour, in which transparent pixels have the colour of the visible pixels around them.

    Files often hold black, or anything, under alpha 0. A network would draw it into the visible edge. A transparent pixel
    gets the mean of its surroundings, weighted by alpha, from the smallest of several windows that holds anything visible.
    Pixels of faint alpha are mixed with that mean. All sums are of whole numbers, so they are the same for any regions.
    """
    share = alpha.astype(np.float64) / (full * _FAINT)
    if share.min() >= 1:
        return colour
    import cv2  # here, because loading it takes time and most pictures have no alpha

    unit = 65535.0 if colour.dtype == np.float32 else 1.0
    weight = np.rint(alpha * unit).astype(np.float64)
    if not weight.any():
        return colour
    weighted = np.rint(colour * unit).astype(np.float64) * weight[:, :, None]
    mean = colour.astype(np.float64)
    missing = np.ones(alpha.shape, bool)
    for window in _WINDOWS:
        size = (window, window)
        weights = cv2.boxFilter(weight, -1, size, normalize=False, borderType=cv2.BORDER_CONSTANT)
        here = missing & (weights > 0)
        if here.any():
            sums = cv2.boxFilter(weighted, -1, size, normalize=False, borderType=cv2.BORDER_CONSTANT)
            mean[here] = sums.reshape(colour.shape)[here] / (weights[here][:, None] * unit)
            missing &= ~here
        if not missing.any():
            break
    share = np.minimum(share, 1.0)[:, :, None]
    mixed = share * colour + (1 - share) * mean
    return mixed.astype(np.float32) if colour.dtype == np.float32 else np.rint(mixed).astype(colour.dtype)
