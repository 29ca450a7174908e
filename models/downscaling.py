"""Downscaling HR → LR: antialiased kernels with MATLAB's border rule, and the 8-bit bicubic one that papers assume."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["KERNELS", "Kernel", "bicubic_downscale", "crop_to_multiple", "downscale", "mirrored", "to_8_bits"]

Kernel = Literal["bicubic", "bilinear", "area"]
KERNELS: tuple[Kernel, ...] = ("bicubic", "bilinear", "area")
"""Keys' cubic (a = −0.5), triangle and box, each as wide as `scale` times its own support."""


def _weights(kernel: Kernel, x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.abs(x)
    if kernel == "bicubic":
        near = 1.5 * x**3 - 2.5 * x**2 + 1
        far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))
    return np.maximum(0.0, 1.0 - x) if kernel == "bilinear" else (x < 0.5).astype(np.float64)


def mirrored(indices: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Indices of pixels that may lie beyond the border → indices inside: the border mirrors, and repeats its edge pixel."""
    wrapped = np.mod(indices, 2 * length)
    return np.where(wrapped < length, wrapped, 2 * length - 1 - wrapped)


def _reduce_rows(picture: NDArray[np.float32] | NDArray[np.uint8], scale: int, kernel: Kernel) -> NDArray[np.float32]:
    """H×… → H/scale×…, antialiased."""
    height = picture.shape[0]
    out = height // scale
    centres = (np.arange(out) + 0.5) * scale - 0.5
    offsets = np.arange(-2 * scale, 2 * scale + 1)
    taps = np.floor(centres)[:, None].astype(np.int64) + offsets[None, :]
    weights = _weights(kernel, (taps - centres[:, None]) / scale)
    weights /= weights.sum(axis=1, keepdims=True)
    rows = mirrored(taps, height)
    result = np.zeros((out, *picture.shape[1:]), dtype=np.float32)
    shape = (out,) + (1,) * (picture.ndim - 1)
    for k in range(len(offsets)):
        if np.any(weights[:, k]):
            result += picture[rows[:, k]] * weights[:, k].astype(np.float32).reshape(shape)
    return result


def crop_to_multiple(picture: NDArray[np.uint8], multiple: int) -> NDArray[np.uint8]:
    """Cut the right and bottom edge of a picture (H×W×C) until both sides are multiples of `multiple`."""
    height, width = (side - side % multiple for side in picture.shape[:2])
    return np.ascontiguousarray(picture[:height, :width])


def downscale(hr: NDArray[np.float32] | NDArray[np.uint8], scale: int, kernel: Kernel = "bicubic") -> NDArray[np.float32]:
    """H×W×C → (H/scale)×(W/scale)×C in the same units, antialiased, not rounded.

    Raises `ValueError` unless both sides are multiples of `scale`.
    """
    height, width = hr.shape[:2]
    if height % scale or width % scale:
        raise ValueError(f"a side of the {height}×{width} picture is no multiple of {scale}")
    rows = _reduce_rows(hr, scale, kernel)
    return _reduce_rows(rows.transpose(1, 0, 2), scale, kernel).transpose(1, 0, 2)


def to_8_bits(picture: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Round half up and clip to grey levels 0 … 255, like MATLAB's `uint8`."""
    return np.clip(np.floor(picture + 0.5), 0, 255).astype(np.uint8)


def bicubic_downscale(hr: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """H×W×C uint8 → (H/scale)×(W/scale)×C uint8, like MATLAB's `imresize(…, 1/scale, 'bicubic')`.

    Raises `ValueError` unless both sides are multiples of `scale`.
    """
    return to_8_bits(downscale(hr, scale))
