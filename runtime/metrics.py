"""PSNR and SSIM as super-resolution papers report them: Y of BT.601, border cropped, 8-bit outputs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["psnr_drop", "psnr_rgb", "psnr_y", "rgb_to_y", "ssim_y"]

_Y_WEIGHTS = np.array([65.481, 128.553, 24.966], dtype=np.float64) / 255.0
"""Luma row of MATLAB's `rgb2ycbcr`, for values in 0 … 255."""


def rgb_to_y(rgb: NDArray[np.uint8]) -> NDArray[np.float64]:
    """H×W×3 uint8 → H×W luma in 16 … 235 (float64, not rounded), MATLAB `rgb2ycbcr`."""
    return rgb.astype(np.float64) @ _Y_WEIGHTS + 16.0


def _crop(a: NDArray[np.float64], border: int) -> NDArray[np.float64]:
    if border and min(a.shape[:2]) <= 2 * border:
        raise ValueError(f"a border of {border} pixels leaves nothing of a {a.shape[0]}×{a.shape[1]} picture")
    return a[border:-border, border:-border] if border else a


def _check(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> None:
    if a.shape != b.shape or a.ndim != 3 or a.shape[2] != 3:
        raise ValueError(f"two H×W×3 pictures of one size are needed, not {a.shape} and {b.shape}")
    if a.dtype != np.uint8 or b.dtype != np.uint8:
        raise ValueError(f"two uint8 pictures are needed, not {a.dtype} and {b.dtype}")


def _psnr(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    mse = float(np.mean((a - b) ** 2))
    return float("inf") if mse == 0 else 10.0 * float(np.log10(255.0**2 / mse))


def psnr_y(sr: NDArray[np.uint8], hr: NDArray[np.uint8], border: int) -> float:
    """PSNR in dB on luma of two H×W×3 uint8 RGB pictures, `border` pixels cropped on each side."""
    _check(sr, hr)
    return _psnr(_crop(rgb_to_y(sr), border), _crop(rgb_to_y(hr), border))


def psnr_drop(before: float, after: float) -> float:
    """`before` − `after` in dB; 0 if both are infinite, as for two perfect pictures."""
    return 0.0 if before == after else before - after


def psnr_rgb(sr: NDArray[np.uint8], hr: NDArray[np.uint8], border: int) -> float:
    """PSNR in dB over all three channels of two H×W×3 uint8 RGB pictures, `border` pixels cropped on each side."""
    _check(sr, hr)
    return _psnr(_crop(sr.astype(np.float64), border), _crop(hr.astype(np.float64), border))


def ssim_y(sr: NDArray[np.uint8], hr: NDArray[np.uint8], border: int) -> float:
    """SSIM on luma (Wang et al. 2004: 11×11 Gaussian, σ 1.5, valid region); pictures and border as for `psnr_y`."""
    _check(sr, hr)
    a, b = _crop(rgb_to_y(sr), border), _crop(rgb_to_y(hr), border)
    if min(a.shape) < 11:
        raise ValueError(f"SSIM needs at least 11 pixels on each side inside the border, not {a.shape[0]}×{a.shape[1]}")
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window /= window.sum()

    def blur(x: NDArray[np.float64]) -> NDArray[np.float64]:
        for axis in (0, 1):
            x = np.lib.stride_tricks.sliding_window_view(x, 11, axis=axis) @ window
        return x

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mu_a, mu_b = blur(a), blur(b)
    var_a, var_b, cov = blur(a * a) - mu_a**2, blur(b * b) - mu_b**2, blur(a * b) - mu_a * mu_b
    similarity = ((2 * mu_a * mu_b + c1) * (2 * cov + c2)) / ((mu_a**2 + mu_b**2 + c1) * (var_a + var_b + c2))
    return float(similarity.mean())
