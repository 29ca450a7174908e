"""Small pictures in a folder."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

__all__ = ["encoded", "fill"]


def encoded(seed: int, suffix: str = ".png") -> bytes:
    """Of 12 to 18 by 16 pixels."""
    noise = np.random.RandomState(seed).randint(0, 256, (12 + seed % 7, 16, 3)).astype(np.uint8)
    return bytes(cv2.imencode(suffix, cv2.GaussianBlur(noise, (0, 0), 1.5))[1])


def fill(folder: Path, count: int) -> Path:
    """PNG, JPEG and WebP files, a third of them in a folder below."""
    for number in range(count):
        suffix = (".png", ".jpg", ".webp")[number % 3]
        path = folder / ("below" if number % 3 == 2 else "") / f"p{number:03d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number, suffix))
    return folder
