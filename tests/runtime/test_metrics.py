"""PSNR and SSIM as papers report them."""

from __future__ import annotations

import numpy as np
import pytest

from rdsr.runtime.metrics import psnr_rgb, psnr_y, rgb_to_y, ssim_y

RNG = np.random.default_rng(0)


def test_luma_is_matlabs() -> None:
    colours = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    assert np.allclose(rgb_to_y(colours), [[16, 235, 81.481, 144.553, 40.966]])


def test_psnr_by_hand() -> None:
    a = np.full((20, 20, 3), 100, np.uint8)
    b = a.copy()
    b[..., 0] += 10
    assert psnr_rgb(a, b, 0) == pytest.approx(10 * np.log10(255**2 / (100 / 3)))
    assert psnr_y(a, b, 0) == pytest.approx(10 * np.log10(255**2 / (10 * 65.481 / 255) ** 2))
    assert psnr_y(a, a, 0) == float("inf")


def test_the_border_does_not_count() -> None:
    a = RNG.integers(0, 256, (24, 30, 3), dtype=np.uint8)
    b = a.copy()
    b[:4], b[-4:], b[:, :4], b[:, -4:] = 0, 0, 0, 0
    assert psnr_y(a, b, 4) == float("inf")
    assert ssim_y(a, b, 4) == pytest.approx(1.0)
    assert psnr_y(a, b, 3) < 60


def test_ssim_against_a_direct_sum() -> None:
    a, b = (RNG.integers(0, 256, (12, 13, 3), dtype=np.uint8) for _ in range(2))
    x, y = rgb_to_y(a), rgb_to_y(b)
    g = np.exp(-((np.arange(11) - 5) ** 2) / 4.5)
    w = np.outer(g, g) / np.outer(g, g).sum()
    values = []
    for i in range(2):
        for j in range(3):
            p, q = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            mp, mq = (w * p).sum(), (w * q).sum()
            vp, vq, c = (w * p * p).sum() - mp**2, (w * q * q).sum() - mq**2, (w * p * q).sum() - mp * mq
            c1, c2 = 6.5025, 58.5225
            values.append((2 * mp * mq + c1) * (2 * c + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    assert ssim_y(a, b, 0) == pytest.approx(np.mean(values), rel=1e-9)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.zeros((20, 20, 3), np.uint8), np.zeros((20, 21, 3), np.uint8)),
        (np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8)),
        (np.zeros((20, 20, 3), np.float32), np.zeros((20, 20, 3), np.float32)),
        (np.zeros((8, 20, 3), np.uint8), np.zeros((8, 20, 3), np.uint8)),
    ],
)
def test_what_cannot_be_compared_is_refused(a: np.ndarray, b: np.ndarray) -> None:
    for metric in (psnr_y, psnr_rgb, ssim_y):
        with pytest.raises(ValueError, match=r"needed|border|SSIM"):
            metric(a, b, 4)
